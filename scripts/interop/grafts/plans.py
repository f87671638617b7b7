"""What a method sets where: parts (path, kind, function, scale), of these kinds.

parallel    y + s g(x)      x: the site's input, y: its output
sequential  y + s g(y)
output      g(y)
replace     g(x)
before      g(x) enters the site"""

from torch.nn import functional as F

from . import forms, prompts
from .folder import NotRead
from .hosts import ACTIVATION, size_of
from .increments import kronecker_sum, split_slice

#: The designs of the unified view (He et al., ICLR 2022, table 1): insertion, norm and scale of each place.
_NORMED = {"insertion": "sequential", "scale": 1, "norm": "in", "activation": "relu"}
_PARALLEL = {"insertion": "parallel", "scale": 1, "norm": "none", "activation": "relu"}
DESIGNS = {
    "houlsby": (_NORMED, _NORMED),
    "pfeiffer": (None, _NORMED | {"norm": "none", "insertion": "pfeiffer"}),
    "parallel": (None, _PARALLEL),
    "scaled_parallel": (None, _PARALLEL | {"scale": 4}),
    "multi_head_parallel": (None, None),
}


class Like(dict):
    """Tensors by name; `to(x)` gives them where x is and in its dtype."""

    def to(self, x):
        key = (x.device, x.dtype)
        if getattr(self, "key", None) != key:
            self.key, self.there = key, {name: t.to(x) if t.is_floating_point() else t.to(x.device) for name, t in self.items()}
        return self.there


def bound(form, leaves, host, **options):
    """A form with a graft's tensors as a function of features."""
    own = Like(leaves)
    return lambda x: form(own.to(x), x, host.context, **options)


def plan(folder, host):
    """The parts of an adapter that stand beside the weights. @raises NotRead for what is not set into such a model"""
    made = MAKERS.get(folder.method)
    for part in made(folder, host) if made else ():
        path, kind, function, *scale = part
        yield path, kind, function, scale[0] if scale else 1


def _at(folder, host, rule, kind, form, scale=1, **options):
    for path, leaves in folder.rule(rule):
        yield path, kind, bound(form, leaves, host, layout=host.layout(path), **options), scale


def _outside(scale, norm):
    """A bottleneck's scale as the composition's and the form's: a learned one is the form's, and one that a norm follows."""
    if scale == "learned":
        return 1, 1
    return (1, scale) if norm == "out" else (scale, 1)


def adaptformer(folder, host):
    o = folder.options
    outer, inner = _outside(o["scale"], o["norm"])
    for path, leaves in folder.rule("adaptmlp"):
        decoded = forms.decoded(leaves, o.get("bits", 32))
        form = bound(forms.bottleneck, decoded, host, layout=host.layout(path), norm=o["norm"], scale=inner)
        yield path, o["placement"], form, outer


def convpass(folder, host):
    for rule in ("attn", "mlp"):
        yield from _at(folder, host, rule, "parallel", forms.conv_bypass, folder.options["scale"])


def _bottlenecks(folder, host, rule, place):
    outer, inner = _outside(place["scale"], place["norm"])
    before = place["insertion"] == "pfeiffer" and host.is_post_norm
    if before:
        outer, inner = 1, place["scale"] if place["scale"] != "learned" else 1
    options = {"norm": place["norm"], "activation": place["activation"], "scale": inner}
    for path, leaves in folder.rule(rule):
        form = bound(forms.bottleneck, leaves, host, layout=host.layout(path), **options)
        if before:
            norm = host.module(path)
            yield path, "before", lambda x, g=form, n=norm: x + g(F.layer_norm(x, n.normalized_shape, n.weight, n.bias, n.eps))
        else:
            yield path, "parallel" if place["insertion"] == "parallel" else "sequential", form, outer


def adapter(folder, host):
    o = folder.options
    for rule, own, designed in zip(("attn", "ffn"), (o.get("attention"), o.get("mlp")), DESIGNS[o["design"]]):
        place = (designed or _PARALLEL) | {key: value for key, value in (own or {}).items() if value is not None}
        yield from _bottlenecks(folder, host, rule, place)


def mam(folder, host):
    yield from _bottlenecks(folder, host, "ffn", folder.options | {"insertion": "parallel"})


def krona_b(folder, host):
    for path, leaves in folder.rule("krona"):
        yield path, "parallel", bound(forms.kronecker_bypass, leaves, host, layout=host.layout(path), scale=folder.options["scale"])


def compacter(folder, host):
    rule = folder.part("phm_rule")
    for path, leaves in folder.rule("compacter"):
        options = {"layout": host.layout(path), "rule": rule, "activation": folder.options["activation"]}
        yield path, "sequential", bound(forms.compacter, leaves, host, **options)


def conv_adapter(folder, host):
    o = folder.options
    kind = "sequential" if o["scheme"].endswith("seq") else "parallel"
    if any("fc1.weight" in leaves for _, leaves in folder.rule("adapter")):
        raise NotRead("the adapter beside CLIP's attention pool is not read")
    yield from _at(folder, host, "adapter", kind, forms.conv_adapter, activation=ACTIVATION.get(host.family, "relu"))
    for path, leaves in folder.rule("prompt"):
        yield path, "before", lambda x, t=leaves: prompts.border(x, t)
    for path, leaves in folder.rule("norm"):

        def norm(t, x, context, layout):
            values = (t["running_mean"], t["running_var"], t["weight"], t["bias"])
            if layout == "map":
                return F.batch_norm(x, *values)
            return F.batch_norm(x.flatten(0, -2), *values).view_as(x)

        yield path, "output", bound(norm, leaves, host, layout=host.layout(path))


def pro_tuning(folder, host):
    o = folder.options
    options = {"groups": o["groups"], "gate_only": o["se"] == "gate_only"}
    for (path, _), leaves in folder.grafts.items():
        yield path, "sequential", bound(forms.prompt_block, leaves, host, layout=host.layout(path), **options)


def spm(folder, host):
    for (path, _), leaves in folder.grafts.items():
        options = {"layout": host.layout(path), "iterations": folder.options["iterations"]}
        yield path, "sequential", bound(forms.prompt_matcher, leaves, host, **options)


def st_adapter(folder, host):
    if host.family != "vit":
        raise NotRead(f"st_adapter is set into timm's VisionTransformer, not into {type(host.model).__name__}")
    for rule in ("adapter_pre_attn", "adapter_pre_mlp"):
        yield from _at(folder, host, rule, "sequential", forms.st_adapter)


def noah(folder, host):
    yield from prompts.noah(folder, host)
    for path, leaves in folder.rule("adapter"):
        width = size_of(folder.options["adapters"], host.block_of(path))
        yield path, "sequential", bound(forms.noah_adapter, leaves, host, width=width)


def _heads_of(host, path, part):
    """Heads of the attention that a projection belongs to, and what undoes the scaling of the scores."""
    if host.family not in ("vit", "swin"):
        raise NotRead(f"increments that are dealt out to heads are not set into {type(host.model).__name__}")
    attention = host.module(split_slice(path)[0].rpartition(".")[0])
    return attention.num_heads, 1 / attention.scale if part == "q" else 1


def pevit_lora(folder, host):
    factor = folder.options["alpha"] / folder.options["rank"]
    for part in ("q", "v"):
        for path, leaves in folder.rule(part):
            heads, unscaled = _heads_of(host, path, part)

            def form(t, x, context, heads=heads, scale=factor * unscaled):
                return forms.raw_heads(F.linear(F.linear(x, t["adapter1.weight"]) * scale, t["adapter2.weight"]), heads)

            yield path, "parallel", bound(form, leaves, host)


def kadaptation(folder, host):
    """The variant of the released code, in which values use the factors of the queries."""
    if folder.options["variant"] == "paper":
        return
    for attention in host.attentions():
        own = folder.part(attention)
        for part, rule in (("q", "phm_rule1"), ("v", "phm_rule2")):
            path = f"{attention}.qkv[{part}]"
            heads, unscaled = _heads_of(host, path, part)
            matrix = kronecker_sum(folder.part(rule), own["q.left"], own["q.right"]).float() * folder.options["scale"]
            leaves = {"h": matrix * unscaled} | ({"b": own["b"] * unscaled} if "b" in own else {})

            def form(t, x, context, heads=heads):
                return forms.raw_heads(x @ t["h"] + t["b"] if "b" in t else x @ t["h"], heads)

            yield path, "parallel", bound(form, leaves, host)


MAKERS = {
    "adaptformer": adaptformer,
    "adapter": adapter,
    "compacter": compacter,
    "conv_adapter": conv_adapter,
    "convpass": convpass,
    "kadaptation": kadaptation,
    "krona_b": krona_b,
    "krona_b_res": krona_b,
    "mam": mam,
    "noah": noah,
    "pevit_lora": pevit_lora,
    "pro_tuning": pro_tuning,
    "prompt_tuning": prompts.prompt_tuning,
    "spm": spm,
    "st_adapter": st_adapter,
    "vpt": prompts.vpt,
}
