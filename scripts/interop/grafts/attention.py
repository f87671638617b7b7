"""Learned keys and values in the attention of timm's vision transformers, and a second attention to them."""

import torch
from torch.nn import functional as F

from .folder import NotRead


def rows_of(folder, host, what):
    """Keys or values of the prefix by the path of their attention, [l, width] each: direct, or made by a shared network."""
    own = {path.rpartition(".")[0]: leaves["weight"] for path, leaves in folder.rule(f"prefix_{what}")}
    own |= {path.rpartition(".")[0]: leaves[what] for path, leaves in folder.rule("prefix") if what in leaves}
    if own:
        return own
    attentions = host.attentions()
    widths = [(host.module(path).qkv.in_features, host.module(path).num_heads) for path in attentions]
    found = {}
    for width, heads in dict.fromkeys(widths):
        name = "prefix_self" if len(set(widths)) == 1 else f"prefix_self_{width}_{heads}"
        t = folder.part(name)
        group = [path for path, size in zip(attentions, widths) if size == (width, heads)]
        hidden = torch.tanh(F.linear(t["embedding.weight"], t["hidden.weight"], t["hidden.bias"]))
        slots = F.linear(hidden, t["out.weight"], t["out.bias"]).unflatten(1, (2 * len(group), width))
        for i, path in enumerate(group):
            found[path] = slots[:, 2 * i + (what == "value")]
    return found


def as_heads(rows, heads):
    """[l, width] as [heads, l, width / heads]."""
    return rows.unflatten(1, (heads, -1)).transpose(0, 1)


def bias_of(attention, mask, extra, like):
    """What is added to the scores of a Swin's window, [1 or windows, heads, N, extra + N]; None for plain attention."""
    if not hasattr(attention, "relative_position_bias_table"):
        return None
    bias = attention._get_rel_pos_bias()
    if mask is not None:
        bias = bias + mask.unsqueeze(1)
    bias = F.pad(bias, (extra, 0)).to(like)
    return bias.repeat(like.shape[0] // len(bias), 1, 1, 1) if len(bias) > 1 else bias


def prefixed(attention, key, value, second, norm):
    """A forward pass of one of timm's attentions with a prefix. `second`: None to set the rows before the other keys and
    values, or the options of a second attention to them."""

    def forward(x, mask=None, attn_mask=None, is_causal=False):
        if attn_mask is not None or is_causal:
            raise NotRead("a prefix beside a mask of your own is not computed here")
        batch, length, _ = x.shape
        heads = attention.num_heads
        qkv = attention.qkv(x)
        q, k, v = qkv.reshape(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        pk, pv = (as_heads(rows.to(x), heads) for rows in (key, value))
        extra = 0
        if second is None:
            extra = len(key)
            k, v = (torch.cat([rows.expand(batch, -1, -1, -1), t], 2) for rows, t in ((pk, k), (pv, v)))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_of(attention, mask, extra, q))
        if second is not None:
            queries = q
            if norm:
                width = qkv.shape[-1] // 3
                z = F.layer_norm(x, x.shape[-1:], norm["norm.weight"].to(x), norm["norm.bias"].to(x))
                bias = attention.qkv.bias
                z = F.linear(z, attention.qkv.weight[:width], None if bias is None else bias[:width])
                queries = z.unflatten(2, (heads, -1)).transpose(1, 2)
            scores = (queries * attention.scale if second["scaled"] else queries) @ pk.transpose(1, 2)
            y = y + (F.relu(scores) if second["nonlinearity"] == "relu" else scores.softmax(-1)) @ pv
        y = y.transpose(1, 2).reshape(batch, length, -1)
        if hasattr(attention, "norm"):
            y = attention.norm(y)
        return attention.proj_drop(attention.proj(y))

    return forward


def second_of(folder):
    """The options of a second attention, or None where the rows stand before the other keys.

    @raises NotRead for a gate that text models have"""
    options = folder.options
    if folder.method == "adapter":
        return {"scaled": False, "nonlinearity": "relu"}
    if folder.method == "mam":
        return None
    plain = options["nonlinearity"] == "softmax" and options["query"] == "plain" and options["scaled"]
    if options["composition"] == "add":
        return {"scaled": options["scaled"], "nonlinearity": options["nonlinearity"]}
    if options["composition"] == "concat" or plain:
        return None
    raise NotRead("a gated second attention is for text models, and is not read")


def forwards(folder, host):
    """New forward passes of attentions: (module, function)."""
    if host.family not in ("vit", "swin"):
        raise NotRead(
            "learned keys and values are set into timm's VisionTransformer and SwinTransformer, "
            f"not into {type(host.model).__name__}"
        )
    second = second_of(folder)
    keys, values = (rows_of(folder, host, what) for what in ("key", "value"))
    norms = {path.rpartition(".")[0]: t for path, t in folder.rule("prefix") if "norm.weight" in t}
    for path in keys:
        attention = host.module(path)
        if getattr(attention, "gate", None) is not None:
            raise NotRead(f"'{path}' has a gate, which is not computed here")
        yield attention, prefixed(attention, keys[path], values[path], second, norms.get(path))
