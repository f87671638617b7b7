"""The networks of the benchmark as a PyTorch user would write them: plain modules, timm's formulas and names."""

import torch
import torch.nn.functional as F
from torch import nn


def batch_norm_frozen(model):
    """Puts the network in training mode with every BatchNorm in eval mode, and freezes what is not a graft."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


class ConvAdapter(nn.Module):
    """Grouped k x k convolution, ReLU, 1 x 1 convolution, per-channel scale (Chen et al. 2022)."""

    def __init__(self, channels_in, channels_out, reduction, stride, kernel=3):
        super().__init__()
        width = channels_in // reduction
        self.conv1 = nn.Conv2d(channels_in, width, kernel, stride=stride, padding=kernel // 2, groups=width)
        self.conv2 = nn.Conv2d(width, channels_out, 1)
        self.se = nn.Parameter(torch.ones(1, channels_out, 1, 1))

    def forward(self, x):
        return self.conv2(F.relu(self.conv1(x))) * self.se


class BasicBlock(nn.Module):
    """CIFAR residual block; the shortcut drops every second pixel and pads channels with zeros."""

    def __init__(self, channels_in, channels, stride, reduction):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.pad = channels // 4 if stride != 1 or channels_in != channels else 0
        self.adapter1 = ConvAdapter(channels_in, channels, reduction, stride) if reduction else None
        self.adapter2 = ConvAdapter(channels, channels, reduction, 1) if reduction else None

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        if self.adapter1 is not None:
            h = h + self.adapter1(x)
        y = self.bn2(self.conv2(h))
        if self.adapter2 is not None:
            y = y + self.adapter2(h)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x
        return F.relu(y + shortcut)


class CifarResNet(nn.Module):
    def __init__(self, depth=20, classes=10, reduction=0):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        layers, width = [], 16
        for stage, channels in enumerate((16, 32, 64)):
            for block in range(blocks):
                layers.append(BasicBlock(width, channels, 2 if stage and not block else 1, reduction))
                width = channels
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.linear(x.mean((2, 3)))


class Bottleneck(nn.Module):
    def __init__(self, channels_in, planes, stride, reduction):
        super().__init__()
        out = planes * 4
        self.conv1 = nn.Conv2d(channels_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.act1, self.act2, self.act3 = (nn.ReLU(inplace=True) for _ in range(3))
        self.downsample = None
        if stride != 1 or channels_in != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )
        self.adapter = ConvAdapter(planes, planes, reduction, stride) if reduction else None

    def forward(self, x):
        u = self.act1(self.bn1(self.conv1(x)))
        h = self.act2(self.bn2(self.conv2(u)))
        if self.adapter is not None:
            h = h + self.adapter(u)
        y = self.bn3(self.conv3(h))
        shortcut = x if self.downsample is None else self.downsample(x)
        y += shortcut
        return self.act3(y)


class ResNet50(nn.Module):
    def __init__(self, classes=1000, reduction=0):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        layers, width = [], 64
        for stage, (planes, depth) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3))):
            for block in range(depth):
                layers.append(Bottleneck(width, planes, 2 if stage and not block else 1, reduction))
                width = planes * 4
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x):
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        return self.fc(self.layers(x).mean((2, 3)))


class ScaleShift(nn.Module):
    """SSF: y = x * scale + shift over the last axis (Lian et al. 2022)."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width) * 0.02 + 1)
        self.shift = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, x):
        return x * self.scale + self.shift


class ScaleShift2d(ScaleShift):
    """The same over the channels of maps."""

    def forward(self, x):
        return x * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)


class LoraLinear(nn.Module):
    """y = W x + b + s B A x, computed as the usual libraries do."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.scaling = alpha / rank

    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x)) * self.scaling


class Attention(nn.Module):
    def __init__(self, width, heads, ssf):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.ssf1 = ScaleShift(3 * width) if ssf else nn.Identity()
        self.ssf2 = ScaleShift(width) if ssf else nn.Identity()

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.ssf1(self.qkv(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.ssf2(self.proj(x.transpose(1, 2).reshape(b, n, c)))


class Mlp(nn.Module):
    def __init__(self, width, ssf):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.ssf1 = ScaleShift(4 * width) if ssf else nn.Identity()
        self.ssf2 = ScaleShift(width) if ssf else nn.Identity()

    def forward(self, x):
        return self.ssf2(self.fc2(F.gelu(self.ssf1(self.fc1(x)))))


class Block(nn.Module):
    def __init__(self, width, heads, ssf):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, ssf)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, ssf)
        self.ssf1 = ScaleShift(width) if ssf else nn.Identity()
        self.ssf2 = ScaleShift(width) if ssf else nn.Identity()

    def forward(self, x):
        x = x + self.attn(self.ssf1(self.norm1(x)))
        return x + self.mlp(self.ssf2(self.norm2(x)))


class ViTSmall(nn.Module):
    def __init__(self, classes=1000, width=384, depth=12, heads=6, ssf=False, lora=0):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 16, stride=16)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads, ssf) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.ssf_embed = ScaleShift(width) if ssf else nn.Identity()
        self.ssf_norm = ScaleShift(width) if ssf else nn.Identity()
        self.head = nn.Linear(width, classes)
        if lora:
            for block in self.blocks:
                block.attn.qkv = LoraLinear(block.attn.qkv, lora, lora)

    def forward(self, x):
        x = self.ssf_embed(self.patch_embed(x).flatten(2).transpose(1, 2))
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1) + self.pos_embed
        x = self.ssf_norm(self.norm(self.blocks(x)))
        return self.head(x[:, 0])


def freeze(model, trainable):
    """Leaves only the parameters whose name contains one of `trainable` learning; returns them."""
    chosen = []
    for name, parameter in model.named_parameters():
        wanted = any(part in name for part in trainable)
        parameter.requires_grad_(wanted)
        if wanted:
            chosen.append(parameter)
    return chosen
