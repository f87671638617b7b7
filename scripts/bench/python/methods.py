"""Methods of adaptation set into the networks of models.py as their official codes write them: plain PyTorch modules."""

import torch
import torch.nn.functional as F
from torch import nn

from models import Attention, Block, Mlp, ViTSmall


class ConvBypass(nn.Module):
    """1x1 down, 3x3 on the grid of patches, 1x1 up, quick GELU around the 3x3 (Jie & Deng 2022)."""

    def __init__(self, width, hidden, grid):
        super().__init__()
        self.grid = grid
        self.down = nn.Linear(width, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.up = nn.Linear(hidden, width)
        self.drop = nn.Dropout(0.1)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        b, n, _ = x.shape
        z = self.down(x)
        z = z * torch.sigmoid(1.702 * z)
        patches = z[:, 1:].reshape(b, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        patches = self.conv(patches).permute(0, 2, 3, 1).reshape(b, n - 1, -1)
        token = self.conv(z[:, :1].reshape(b, 1, 1, -1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(b, 1, -1)
        z = torch.cat((token, patches), 1)
        return self.up(self.drop(z * torch.sigmoid(1.702 * z)))


class ConvpassBlock(Block):
    def __init__(self, width, heads, hidden=8, scale=0.1):
        super().__init__(width, heads, False)
        self.adapter_attn = ConvBypass(width, hidden, 14)
        self.adapter_mlp = ConvBypass(width, hidden, 14)
        self.scale = scale

    def forward(self, x):
        n = self.norm1(x)
        x = x + self.attn(n) + self.adapter_attn(n) * self.scale
        n = self.norm2(x)
        return x + self.mlp(n) + self.adapter_mlp(n) * self.scale


class FactAttention(Attention):
    """Tensor-train increments of q, k, v and the output projection (Jie & Deng 2023)."""

    def __init__(self, width, heads, rank, shared):
        super().__init__(width, heads, False)
        self.shared = [shared]  # in a list, so that it is not counted here
        self.fact_q, self.fact_k, self.fact_v, self.fact_proj = (nn.Linear(rank, rank, bias=False) for _ in range(4))
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        b, n, c = x.shape
        down, up = self.shared[0]
        parts = [up(self.drop(core(down(x)))) for core in (self.fact_q, self.fact_k, self.fact_v)]
        qkv = self.qkv(x) + torch.cat(parts, 2)
        q, k, v = qkv.reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return self.proj(x) + up(self.drop(self.fact_proj(down(x))))


class FactMlp(Mlp):
    def __init__(self, width, rank, shared):
        super().__init__(width, False)
        self.shared = [shared]
        self.rank = rank
        self.fact_fc1 = nn.Linear(rank, 4 * rank, bias=False)
        self.fact_fc2 = nn.Linear(4 * rank, rank, bias=False)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        b, n, c = x.shape
        down, up = self.shared[0]
        h = self.drop(self.fact_fc1(down(x))).reshape(b, n, 4, self.rank)
        h = F.gelu(self.fc1(x) + up(h).reshape(b, n, 4 * c))
        y = down(h.reshape(b, n, 4, c)).reshape(b, n, 4 * self.rank)
        return self.fc2(h) + up(self.drop(self.fact_fc2(y)))


class KronaLinear(nn.Module):
    """W + s A (x) B: the product materialised in every pass, or as two small products over a folded x (Edalati et al. 2022)."""

    def __init__(self, base, a, b, trick):
        super().__init__()
        self.base = base
        self.krona_A = nn.Parameter(torch.randn(*a) * 0.02)
        self.krona_B = nn.Parameter(torch.zeros(*b))
        self.trick = trick

    def forward(self, x):
        if not self.trick:
            return self.base(x) + x @ torch.kron(self.krona_A, self.krona_B)
        folded = x.reshape(*x.shape[:-1], self.krona_A.shape[0], self.krona_B.shape[0])
        return self.base(x) + (self.krona_A.t() @ folded @ self.krona_B).flatten(-2)


class DeepPrompts(nn.Module):
    """Prompts of its own for every block of the network (VPT-deep, Jia et al. 2022)."""

    def __init__(self, vit, count):
        super().__init__()
        self.vit = vit
        width = vit.head.in_features
        self.count = count
        self.prompt_embeddings = nn.Parameter(torch.rand(1, count, width) * 0.12 - 0.06)
        self.deep_prompt_embeddings = nn.Parameter(torch.rand(len(vit.blocks) - 1, count, width) * 0.12 - 0.06)

    def forward(self, x):
        vit, p = self.vit, self.count
        x = vit.patch_embed(x).flatten(2).transpose(1, 2)
        b = x.shape[0]
        x = torch.cat((vit.cls_token.expand(b, -1, -1), x), 1) + vit.pos_embed
        x = torch.cat((x[:, :1], self.prompt_embeddings.expand(b, -1, -1), x[:, 1:]), 1)
        for i, block in enumerate(vit.blocks):
            if i:
                x = torch.cat((x[:, :1], self.deep_prompt_embeddings[i - 1].expand(b, -1, -1), x[:, 1 + p :]), 1)
            x = block(x)
        return vit.head(vit.norm(x)[:, 0])


def convpass(classes):
    vit = ViTSmall(classes)
    vit.blocks = nn.Sequential(*[ConvpassBlock(384, 6) for _ in range(12)])
    return vit


def fact(classes, rank=16):
    vit = ViTSmall(classes)
    vit.fact_u = nn.Linear(384, rank, bias=False)
    vit.fact_v = nn.Linear(rank, 384, bias=False)
    nn.init.zeros_(vit.fact_v.weight)
    for block in vit.blocks:
        block.attn = FactAttention(384, 6, rank, (vit.fact_u, vit.fact_v))
        block.mlp = FactMlp(384, rank, (vit.fact_u, vit.fact_v))
    return vit


def krona(trick):
    def build(classes):
        vit = ViTSmall(classes)
        for block in vit.blocks:
            for owner, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
                base = getattr(owner, name)
                a, b = KRONA_SHAPES[(base.in_features, base.out_features)]
                setattr(owner, name, KronaLinear(base, a, b, trick))
        return vit

    return build


# Shapes of A and B by the layer's, as torchgraft chooses them by itself.
KRONA_SHAPES = {
    (384, 1152): ((24, 32), (16, 36)),
    (384, 384): ((24, 16), (16, 24)),
    (384, 1536): ((24, 32), (16, 48)),
    (1536, 384): ((48, 16), (32, 24)),
}


def vpt_deep(classes):
    return DeepPrompts(ViTSmall(classes), 50)
