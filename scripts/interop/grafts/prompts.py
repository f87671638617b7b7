"""Learned tokens, pixels and channels: what changes sequences and images on their way."""

import torch
from torch.nn import functional as F

from .folder import NotRead
from .hosts import size_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Mean and deviation of channels that are no color.
GRAY = (0.449, 0.226)


def normalized(pixels):
    """Pixels as images are normalized."""
    mean, std = (torch.tensor(values, device=pixels.device, dtype=pixels.dtype).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def between(x, prompts, at):
    """Prompts [P, D] or [1, P, D] in front of x[:, at:]."""
    return torch.cat([x[:, :at], prompts.to(x).expand(len(x), -1, -1), x[:, at:]], 1)


def insert(x, prompts, context):
    """Prompts behind the prefix, which they belong to from here on."""
    at = context.prefix
    context.prefix += prompts.shape[-2]
    return between(x, prompts, at)


def exchange(x, prompts, context, first=False):
    """Prompts in place of those that stand last in the prefix; `first`: in place of patches."""
    count = prompts.shape[-2]
    if first:
        context.prefix += count
    prefix = between(x[:, : context.prefix], prompts, context.prefix - count)[:, : context.prefix]
    return torch.cat([prefix, x[:, context.prefix :]], 1)


def remove(x, count, context):
    """The sequence without the last prompts of the prefix."""
    context.prefix -= count
    return torch.cat([x[:, : context.prefix], x[:, context.prefix + count :]], 1)


def add(x, prompts, context):
    """Prompts [1, 1 or N, D] added to tokens, on a Swin to a map [B, H, W, D]."""
    prompts = prompts.to(x)
    return x + (prompts.reshape(1, *x.shape[1:]) if prompts.shape[1] > 1 else prompts.view(1, *[1] * (x.ndim - 2), -1))


def frame(x, t, width, is_uniform):
    """Images with a frame of learned pixels around them."""
    tb, lr = (normalized(t[name]) if is_uniform else t[name] for name in ("tb", "lr"))
    tb, lr = (pixels.to(x).expand(len(x), -1, -1, -1) for pixels in (tb, lr))
    row = torch.cat([lr[..., :width], x, lr[..., width:]], 3)
    return torch.cat([tb[:, :, :width], row, tb[:, :, width:]], 2)


def border(x, t):
    """Images plus a learned border, conv_adapter's variant `prompt`."""
    inner = x.new_zeros(1, x.shape[1], t["pad_left"].shape[2], t["pad_up"].shape[3] - 2 * t["pad_left"].shape[3])
    middle = torch.cat([t["pad_left"].to(x), inner, t["pad_right"].to(x)], 3)
    return x + torch.cat([t["pad_up"].to(x), middle, t["pad_down"].to(x)], 2)


def wider(conv, t, x, is_uniform):
    """The first convolution anew, with learned channels behind the colors."""
    channels = (t["embeddings"] - GRAY[0]) / GRAY[1] if is_uniform else t["embeddings"]
    whole = torch.cat([x, channels.to(x).expand(len(x), -1, -1, -1)], 1)
    return F.conv2d(whole, t["conv.weight"], t.get("conv.bias"), conv.stride, conv.padding)


class Tables:
    """The prompts of a vpt adapter: rows of tables, perhaps widened by one layer."""

    def __init__(self, folder, host):
        self.folder, self.host = folder, host
        self.project = folder.shared.get("prompt_proj")

    def row(self, table, row):
        prompts = self.folder.part(table)["embeddings"][row : row + 1]
        if self.project is not None:
            prompts = F.linear(prompts, self.project["proj.weight"], self.project["proj.bias"])
        return prompts

    def deep(self):
        """(block, prompts) of the blocks that have prompts of their own."""
        options, blocks = self.folder.options, self.host.blocks
        count = options.get("deepLayers")
        if options["reverse"]:
            indices = [] if count is None else range(len(blocks) - count, len(blocks))
        else:
            indices = range(1, len(blocks) if count is None else min(count, len(blocks)))
        rows = {}
        for i in indices:
            stage = blocks[i].split(".")[1] if self.host.family == "swin" else None
            table = "deep" if stage is None else f"deep_{stage}"
            row = rows[table] = rows.get(table, -1) + 1
            yield i, self.row("prompts", 0) if options["deepShared"] else self.row(table, row)


def vpt(folder, host):
    """Parts of visual prompt tuning: (path, kind, function), as plans.py has them."""
    o, context = folder.options, host.context
    where, count = o["location"], o["tokens"]
    if where == "pad":
        ((_, t),) = folder.rule("prompt")
        yield "input", "before", lambda x: frame(x, t, count, o["initiation"] == "random")
    elif where == "below":
        ((path, t),) = folder.rule("below")
        uniform = o["initiation"] == "random" and host.family not in ("vit", "swin")
        yield path, "replace", lambda x: wider(host.module(path), t, x, uniform)
        for norm, own in folder.rule("norm"):
            values = (own["running_mean"], own["running_var"], own["weight"], own["bias"])
            yield norm, "replace", lambda x: F.batch_norm(x, *values, eps=host.module(norm).eps)
    elif where.startswith("add"):
        tables = Tables(folder, host)
        if not (o["deep"] and o["reverse"]):
            yield "tokens", "before", lambda x: add(x, tables.row("prompts", 0), context)
        if o["deep"]:
            for i, prompts in tables.deep():
                yield host.blocks[i], "before", lambda x, p=prompts: add(x, p, context)
    else:
        if host.family != "vit":
            raise NotRead(
                "prompts before the tokens are set into timm's VisionTransformer only; "
                "a Swin of timm's keeps no tokens beside its map"
            )
        yield from prepended(folder, host)
    if o["pool"] != "original":
        yield from pooled(o, host)


def prepended(folder, host):
    """Prompts before the patches, or pixels that become such."""
    o, context = folder.options, host.context
    count = o["tokens"]
    if o["location"] != "prepend":
        ((_, t),) = folder.rule("prompt")
        pixels = normalized(t["prompts.embeddings"]) if o["location"].endswith("normalized") else t["prompts.embeddings"]
        embed = host.module("patch_embed.proj")
        yield "tokens", "before", lambda x: insert(x, embed(pixels.to(x)).flatten(2).transpose(1, 2), context)
        return
    tables = Tables(folder, host)
    if not (o["deep"] and o["reverse"]):
        yield "tokens", "before", lambda x: insert(x, tables.row("prompts", 0), context)
    if not o["deep"]:
        return
    for number, (i, prompts) in enumerate(tables.deep()):
        first = o["reverse"] and number == 0
        yield host.blocks[i], "before", lambda x, p=prompts, f=first: exchange(x, p, context, f)
    layers = o.get("deepLayers")
    if o["noExpand"] and layers is not None and not o["reverse"] and layers < len(host.blocks):
        yield host.blocks[layers], "before", lambda x: remove(x, count, context)


def pooled(o, host):
    """The mean of patches, prompts or both as what the head reads."""
    context, layers = host.context, o.get("deepLayers")
    is_removed = o["deep"] and o["noExpand"] and not o["reverse"] and (layers or len(host.blocks)) < len(host.blocks)
    count = o["tokens"] if o["location"].startswith("prepend") and not is_removed else 0
    if host.family != "vit":
        raise NotRead("a mean over prompts is set into timm's VisionTransformer only")

    def mean(x):
        first = context.prefix if o["pool"] == "img" else context.prefix - count
        return x[:, first : context.prefix if o["pool"] == "prompt" else x.shape[1]].mean(1)

    yield "pool", "pool", mean


def prompt_tuning(folder, host):
    """Embeddings before those of the patches."""
    if host.family != "vit":
        raise NotRead(f"prompt_tuning is set into timm's VisionTransformer here, not into {type(host.model).__name__}")
    ((_, t),) = folder.rule("prompt")
    yield "tokens", "before", lambda x: insert(x, t["weight"], host.context)


def noah(folder, host):
    """NOAH's prompts: at the end of the sequence, those of a block in place of those of the one before."""
    sizes = folder.options["prompts"]

    def own(x, t, i):
        count = size_of(sizes, i)
        if count == 0:
            return x
        old = size_of(sizes, i - 1) if i else 0
        return torch.cat([x[:, : x.shape[1] - old], t["visual_prompt_token"][:, :count].to(x).expand(len(x), -1, -1)], 1)

    def trimmed(x):
        height, width = host.context.grid
        return x[:, : host.context.prefix + height * width]

    grafts = folder.rule("prompts")
    for path, t in grafts:
        yield path, "before", lambda x, t=t, i=host.block_of(path): own(x, t, i)
    if grafts:
        yield "features", "output", trimmed
