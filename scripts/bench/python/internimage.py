"""
InternImage with SSF as a PyTorch user would write it. Its deformable convolution is the way
there is without a compiled extension: positions on the unit square, `grid_sample` per group, a weighted sum.
"""

import torch
import torch.nn.functional as F
from torch import nn

from convnets import LayerNorm2d, ScaledMlp
from models import ScaleShift, ScaleShift2d


def dcnv3(x, offset, mask, groups, kernel=3, padding=1, offset_scale=1.0):
    """DCNv3, stride 1; x [N, H, W, C], offset [N, H, W, G * P * 2], mask [N, H, W, G * P] (Wang et al. 2023)."""
    n, h, w, c = x.shape
    x = F.pad(x, (0, 0, padding, padding, padding, padding))
    high, wide = x.shape[1], x.shape[2]
    points = kernel * kernel
    reach = kernel // 2
    size = torch.tensor([wide, high], device=x.device)
    rows = torch.arange(h, device=x.device) + reach + 0.5
    columns = torch.arange(w, device=x.device) + reach + 0.5
    centers = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).view(1, h, w, 1, 2) / size
    taps = torch.arange(-reach, reach + 1, device=x.device)
    taps = torch.stack(torch.meshgrid(taps, taps, indexing="ij"), -1).view(1, 1, 1, points, 2) / size
    grid = (centers + taps * offset_scale).repeat(n, 1, 1, groups, 1)
    places = grid + offset.view(n, h, w, groups * points, 2) * offset_scale / size

    maps = x.view(n, high * wide, c).transpose(1, 2).reshape(n * groups, c // groups, high, wide)
    places = (2 * places - 1).view(n, h * w, groups, points, 2).transpose(1, 2).flatten(0, 1)
    samples = F.grid_sample(maps, places, mode="bilinear", padding_mode="zeros", align_corners=False)
    weights = mask.view(n, h * w, groups, points).transpose(1, 2).reshape(n * groups, 1, h * w, points)
    return (samples * weights).sum(-1).view(n, c, h * w).transpose(1, 2).reshape(n, h, w, c).contiguous()


class DCNv3(nn.Module):
    def __init__(self, dim, groups):
        super().__init__()
        self.groups = groups
        self.dw_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.dw_norm = LayerNorm2d(dim, eps=1e-6)
        self.offset = nn.Linear(dim, groups * 9 * 2)
        self.mask = nn.Linear(dim, groups * 9)
        self.input_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.ssf_conv = ScaleShift2d(dim)
        self.ssf_norm = ScaleShift2d(dim)
        self.ssf_offset = ScaleShift(groups * 9 * 2)
        self.ssf_mask = ScaleShift(groups * 9)
        self.ssf_in = ScaleShift(dim)
        self.ssf_out = ScaleShift(dim)

    def forward(self, x):
        n, h, w, _ = x.shape
        z = self.ssf_in(self.input_proj(x))
        u = self.ssf_conv(self.dw_conv(x.permute(0, 3, 1, 2)))
        u = F.gelu(self.ssf_norm(self.dw_norm(u))).permute(0, 2, 3, 1)
        offset = self.ssf_offset(self.offset(u))
        mask = self.ssf_mask(self.mask(u)).reshape(n, h, w, self.groups, -1)
        mask = F.softmax(mask, -1).reshape(n, h, w, -1)
        return self.ssf_out(self.output_proj(dcnv3(z, offset, mask, self.groups)))


class InternLayer(nn.Module):
    """Norm and deformable convolution, norm and MLP, on maps with their channels last."""

    def __init__(self, dim, groups):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.dcn = DCNv3(dim, groups)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = ScaledMlp(dim)
        self.ssf1 = ScaleShift(dim)
        self.ssf2 = ScaleShift(dim)

    def forward(self, x):
        x = x + self.dcn(self.ssf1(self.norm1(x)))
        return x + self.mlp(self.ssf2(self.norm2(x)))


class ConvNorm(nn.Module):
    """3x3 convolution of stride 2 and layer norm with their pairs; maps in, maps out."""

    def __init__(self, channels_in, channels, bias):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, stride=2, padding=1, bias=bias)
        self.norm = LayerNorm2d(channels, eps=1e-6)
        self.ssf1 = ScaleShift2d(channels)
        self.ssf2 = ScaleShift2d(channels)

    def forward(self, x):
        return self.ssf2(self.norm(self.ssf1(self.conv(x))))


class InternLevel(nn.Module):
    def __init__(self, dim, groups, depth, last):
        super().__init__()
        self.blocks = nn.Sequential(*[InternLayer(dim, groups) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.ssf = ScaleShift(dim)
        self.downsample = None if last else ConvNorm(dim, 2 * dim, False)

    def forward(self, x):
        x = self.ssf(self.norm(self.blocks(x)))
        if self.downsample is None:
            return x
        return self.downsample(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class InternImageTiny(nn.Module):
    """InternImage-T with SSF behind every layer."""

    def __init__(self, classes, channels=64, depths=(4, 4, 18, 4), groups=(4, 8, 16, 32)):
        super().__init__()
        self.patch_embed = nn.Sequential(
            ConvNorm(3, channels // 2, True), nn.GELU(), ConvNorm(channels // 2, channels, True)
        )
        dims = [channels * 2**i for i in range(4)]
        self.levels = nn.Sequential(
            *[InternLevel(dims[i], groups[i], depths[i], last=i == 3) for i in range(4)]
        )
        wide = int(1.5 * dims[-1])
        self.conv_head = nn.Sequential(nn.Conv2d(dims[-1], wide, 1, bias=False), nn.BatchNorm2d(wide))
        self.ssf_conv = ScaleShift2d(wide)
        self.ssf_norm = ScaleShift2d(wide)
        self.head = nn.Linear(wide, classes)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
                if name.endswith(("offset", "mask")):  # A regular grid, every point with the same weight.
                    nn.init.zeros_(module.weight)

    def forward(self, x):
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        x = self.levels(x).permute(0, 3, 1, 2)
        conv, norm = self.conv_head
        x = F.gelu(self.ssf_norm(norm(self.ssf_conv(conv(x)))))
        return self.head(x.mean((2, 3)))
