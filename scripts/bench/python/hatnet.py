"""HAT-Net with convolutional bypasses, as a PyTorch user would write it; tensors have the names of the official file."""

import torch
import torch.nn.functional as F
from torch import nn

from convnets import initialize


def map_norm(channels):
    return nn.GroupNorm(1, channels, eps=1e-6)


class ConvBypass2d(nn.Module):
    """1x1 down, 3x3, 1x1 up on maps, quick GELU around the 3x3 (Jie & Deng 2022)."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.down = nn.Conv2d(channels, hidden, 1)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.up = nn.Conv2d(hidden, channels, 1)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        z = self.down(x)
        z = self.conv(z * torch.sigmoid(1.702 * z))
        return self.up(self.drop(z * torch.sigmoid(1.702 * z)))


class Attention(nn.Module):
    """Attention within windows, then from every pixel to the pooled map (Liu et al. 2024)."""

    def __init__(self, dim, head_dim, window, pool):
        super().__init__()
        self.heads, self.head_dim, self.window = dim // head_dim, head_dim, window
        self.norm = map_norm(dim)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.proj_norm = map_norm(dim)  # in the files, never used
        if window > 1:
            self.grid_norm = map_norm(dim)
            self.pool = nn.AvgPool2d(pool)
            self.ds_norm = map_norm(dim)
            self.q = nn.Conv2d(dim, dim, 1)
            self.kv = nn.Conv2d(dim, 2 * dim, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        g, heads, d = self.window, self.heads, self.head_dim
        qkv = self.qkv(self.norm(x))
        if g == 1:
            q, k, v = qkv.reshape(b, 3, heads, d, h * w).transpose(-1, -2).unbind(1)
            y = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, h, w)
            return self.proj(y)
        cut = qkv.reshape(b, 3, heads, d, h // g, g, w // g, g).permute(1, 0, 2, 4, 6, 5, 7, 3)
        q, k, v = cut.reshape(3, -1, g * g, d).unbind(0)
        near = F.scaled_dot_product_attention(q, k, v).reshape(b, heads, h // g, w // g, g, g, d)
        near = near.permute(0, 1, 6, 2, 4, 3, 5).reshape(b, c, h, w)
        y = self.grid_norm(x + near)
        q = self.q(y).reshape(b, heads, d, h * w).transpose(-1, -2)
        k, v = self.kv(self.ds_norm(self.pool(y))).reshape(b, 2, heads, d, -1).transpose(-1, -2).unbind(1)
        far = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, h, w)
        return self.proj(far + y)


class InvertedResidual(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.conv1 = nn.Sequential(map_norm(dim), nn.Conv2d(dim, hidden, 1, bias=False), nn.SiLU(inplace=True))
        self.conv2 = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.SiLU(inplace=True)
        )
        self.conv3 = nn.Sequential(nn.Conv2d(hidden, dim, 1, bias=False), map_norm(dim))

    def forward(self, x):
        return self.conv3(self.conv2(self.conv1(x)))


class Block(nn.Module):
    def __init__(self, dim, head_dim, window, pool, expansion, hidden=8, scale=0.1):
        super().__init__()
        self.attn = Attention(dim, head_dim, window, pool)
        self.conv = InvertedResidual(dim, expansion * dim)
        self.adapter_attn = ConvBypass2d(dim, hidden)
        self.adapter_mlp = ConvBypass2d(dim, hidden)
        self.scale = scale

    def forward(self, x):
        x = x + self.attn(x) + self.adapter_attn(x) * self.scale
        return x + self.conv(x) + self.adapter_mlp(x) * self.scale


class Downsample(nn.Module):
    def __init__(self, channels_in, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, stride=2, padding=1)
        self.norm = map_norm(channels)

    def forward(self, x):
        return self.norm(self.conv(x))


class HatNetTiny(nn.Module):
    """HAT-Net-T."""

    def __init__(self, classes, dims=(48, 96, 240, 384), depths=(2, 2, 6, 3)):
        super().__init__()
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            map_norm(16),
            nn.SiLU(inplace=True),
            nn.Conv2d(16, dims[0], 3, stride=2, padding=1),
        )
        stages = zip(dims, depths, (8, 7, 7, 1), (8, 4, 2, 1), (8, 8, 4, 4))
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(*[Block(dim, 48, window, pool, expansion) for _ in range(depth)])
                for dim, depth, window, pool, expansion in stages
            ]
        )
        self.ds2 = Downsample(dims[0], dims[1])
        self.ds3 = Downsample(dims[1], dims[2])
        self.ds4 = Downsample(dims[2], dims[3])
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(dims[3], classes))
        initialize(self)
        for block in (block for stage in self.blocks for block in stage):
            nn.init.zeros_(block.adapter_attn.up.weight)
            nn.init.zeros_(block.adapter_mlp.up.weight)

    def forward(self, x):
        x = self.blocks[0](self.patch_embed(x))
        for downsample, stage in zip((self.ds2, self.ds3, self.ds4), self.blocks[1:]):
            x = stage(downsample(x))
        return self.classifier(x.mean((2, 3)))
