"""ConvNeXt, HorNet and GhostNet as a PyTorch user would write them; tensors have the names of timm or the papers' files."""

import torch
import torch.nn.functional as F
from torch import nn

from models import ConvAdapter, ScaleShift, ScaleShift2d


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of maps."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def initialize(model):
    """Weights truncated normal, biases 0."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


class ScaledMlp(nn.Module):
    """Linear, GELU, linear, with SSF behind both layers."""

    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.ssf1 = ScaleShift(4 * dim)
        self.ssf2 = ScaleShift(dim)

    def forward(self, x):
        return self.ssf2(self.fc2(F.gelu(self.ssf1(self.fc1(x)))))


class ConvNeXtBlock(nn.Module):
    """Depth-wise 7x7, then norm and MLP with the channels last, scaled per channel (Liu et al. 2022)."""

    def __init__(self, dim):
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = ScaledMlp(dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))
        self.ssf1 = ScaleShift2d(dim)
        self.ssf2 = ScaleShift(dim)

    def forward(self, x):
        h = self.ssf1(self.conv_dw(x)).permute(0, 2, 3, 1)
        h = self.mlp(self.ssf2(self.norm(h))) * self.gamma
        return x + h.permute(0, 3, 1, 2)


class ConvNeXtStage(nn.Module):
    def __init__(self, before, dim, depth):
        super().__init__()
        self.downsample = nn.Identity()
        if before is not None:
            self.downsample = nn.Sequential(LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, dim, 2, stride=2))
        self.blocks = nn.Sequential(*[ConvNeXtBlock(dim) for _ in range(depth)])

    def forward(self, x):
        return self.blocks(self.downsample(x))


class ConvNeXtTiny(nn.Module):
    """ConvNeXt-T with SSF behind every layer of the stem and the blocks, and before the pool (Lian et al. 2022)."""

    def __init__(self, classes, depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, stride=4), LayerNorm2d(dims[0], eps=1e-6))
        self.ssf1 = ScaleShift2d(dims[0])
        self.ssf2 = ScaleShift2d(dims[0])
        befores = (None, *dims[:-1])
        self.stages = nn.Sequential(*[ConvNeXtStage(*sizes) for sizes in zip(befores, dims, depths)])
        self.ssf3 = ScaleShift2d(dims[-1])
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(dims[-1], eps=1e-6), "fc": nn.Linear(dims[-1], classes)})
        initialize(self)

    def forward(self, x):
        x = self.ssf2(self.stem[1](self.ssf1(self.stem[0](x))))
        x = self.ssf3(self.stages(x)).mean((2, 3))
        return self.head["fc"](self.head["norm"](x))


class GnConv(nn.Module):
    """Recursive gated convolution: products with depth-wise features, `order` times (Rao et al. 2022)."""

    def __init__(self, dim, order, scale=1 / 3):
        super().__init__()
        self.dims = [dim // 2**i for i in reversed(range(order))]
        self.scale = scale
        total = sum(self.dims)
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1)
        self.dwconv = nn.Conv2d(total, total, 7, padding=3, groups=total)
        self.pws = nn.ModuleList([nn.Conv2d(a, b, 1) for a, b in zip(self.dims, self.dims[1:])])
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        p, q = torch.split(self.proj_in(x), (self.dims[0], sum(self.dims)), dim=1)
        gates = torch.split(self.dwconv(q) * self.scale, self.dims, dim=1)
        p = p * gates[0]
        for pw, gate in zip(self.pws, gates[1:]):
            p = pw(p) * gate
        return self.proj_out(p)


class HorBlock(nn.Module):
    def __init__(self, dim, order):
        super().__init__()
        self.norm1 = LayerNorm2d(dim, eps=1e-6)
        self.gnconv = GnConv(dim, order)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma1 = nn.Parameter(torch.full((dim,), 1e-6))
        self.gamma2 = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x):
        x = x + self.gamma1.view(1, -1, 1, 1) * self.gnconv(self.norm1(x))
        h = self.pwconv2(F.gelu(self.pwconv1(self.norm2(x.permute(0, 2, 3, 1)))))
        return x + (self.gamma2 * h).permute(0, 3, 1, 2)


class HorNetTiny(nn.Module):
    """HorNet-T with 7x7 filters."""

    def __init__(self, classes, depths=(2, 3, 18, 2), base=64):
        super().__init__()
        dims = [base * 2**i for i in range(4)]
        self.downsample_layers = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(3, dims[0], 4, stride=4), LayerNorm2d(dims[0], eps=1e-6))]
        )
        for before, dim in zip(dims, dims[1:]):
            self.downsample_layers.append(
                nn.Sequential(LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, dim, 2, stride=2))
            )
        self.stages = nn.ModuleList(
            [
                nn.Sequential(*[HorBlock(dim, order) for _ in range(depth)])
                for dim, order, depth in zip(dims, (2, 3, 4, 5), depths)
            ]
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], classes)
        initialize(self)

    def forward(self, x):
        for downsample, stage in zip(self.downsample_layers, self.stages):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean((2, 3))))


class GhostModule(nn.Module):
    """A 1x1 convolution makes half of the maps, a depth-wise one the other half of those (Han et al. 2020)."""

    def __init__(self, channels_in, channels, relu=True):
        super().__init__()
        half = -(-channels // 2)
        self.channels = channels
        self.primary_conv = nn.Sequential(nn.Conv2d(channels_in, half, 1, bias=False), nn.BatchNorm2d(half))
        self.cheap_operation = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half)
        )
        if relu:
            self.primary_conv.append(nn.ReLU(inplace=True))
            self.cheap_operation.append(nn.ReLU(inplace=True))

    def forward(self, x):
        x1 = self.primary_conv(x)
        return torch.cat((x1, self.cheap_operation(x1)), 1)[:, : self.channels]


class SqueezeExcite(nn.Module):
    def __init__(self, channels, reduced):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x):
        gate = self.conv_expand(F.relu(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * F.hardsigmoid(gate)


class GhostBottleneck(nn.Module):
    """The adapter stands beside the first ghost module and the strided convolution."""

    def __init__(self, channels_in, mid, out, kernel, stride, squeezed, reduction):
        super().__init__()
        self.ghost1 = GhostModule(channels_in, mid)
        self.conv_dw = self.bn_dw = None
        if stride > 1:
            self.conv_dw = nn.Conv2d(mid, mid, kernel, stride=stride, padding=kernel // 2, groups=mid, bias=False)
            self.bn_dw = nn.BatchNorm2d(mid)
        self.se = SqueezeExcite(mid, squeezed) if squeezed else nn.Identity()
        self.ghost2 = GhostModule(mid, out, relu=False)
        self.shortcut = nn.Identity()
        if stride > 1 or channels_in != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(
                    channels_in,
                    channels_in,
                    kernel,
                    stride=stride,
                    padding=kernel // 2,
                    groups=channels_in,
                    bias=False,
                ),
                nn.BatchNorm2d(channels_in),
                nn.Conv2d(channels_in, out, 1, bias=False),
                nn.BatchNorm2d(out),
            )
        self.adapter = ConvAdapter(channels_in, mid, reduction, stride, kernel if stride > 1 else 3)

    def forward(self, x):
        h = self.ghost1(x)
        if self.conv_dw is not None:
            h = self.bn_dw(self.conv_dw(h))
        h = h + self.adapter(x)
        return self.ghost2(self.se(h)) + self.shortcut(x)


# Per stage the bottlenecks: kernel, middle and output channels, squeezed channels, stride.
GHOSTNET = (
    ((3, 16, 16, 0, 1),),
    ((3, 48, 24, 0, 2),),
    ((3, 72, 24, 0, 1),),
    ((5, 72, 40, 20, 2),),
    ((5, 120, 40, 32, 1),),
    ((3, 240, 80, 0, 2),),
    ((3, 200, 80, 0, 1), (3, 184, 80, 0, 1), (3, 184, 80, 0, 1), (3, 480, 112, 120, 1), (3, 672, 112, 168, 1)),
    ((5, 672, 160, 168, 2),),
    ((5, 960, 160, 0, 1), (5, 960, 160, 240, 1), (5, 960, 160, 0, 1), (5, 960, 160, 240, 1)),
)


class GhostNet(nn.Module):
    """C-GhostNet of width 1 with Conv-Adapter (Chen et al. 2022)."""

    def __init__(self, classes, reduction=4):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stages, width = [], 16
        for rows in GHOSTNET:
            blocks = []
            for kernel, mid, out, squeezed, stride in rows:
                blocks.append(GhostBottleneck(width, mid, out, kernel, stride, squeezed, reduction))
                width = out
            stages.append(nn.Sequential(*blocks))
        stages.append(nn.Sequential(nn.Conv2d(width, 960, 1, bias=False), nn.BatchNorm2d(960), nn.ReLU(inplace=True)))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(960, 1280, 1)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn1(self.conv_stem(x))))
        x = F.relu(self.conv_head(x.mean((2, 3), keepdim=True))).flatten(1)
        return self.classifier(F.dropout(x, 0.2, self.training))
