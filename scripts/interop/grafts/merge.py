"""Folding an adapter into weights, in float64."""

import torch

from . import increments
from .folder import NotRead, take_apart
from .increments import split_slice, stage_of

#: Methods whose increments each stand at their layer.
PLAIN = {"lora": increments.lora, "lokr": increments.lokr, "krona": increments.krona, "kadaptation": increments.kadaptation}
#: Methods that only have values of the backbone's own tensors.
VALUES = ("full", "bitfit", "linear_probe")


class Draft:
    """Weights while they change: in float64 from the first change to the last, then in their own dtype again."""

    def __init__(self, state):
        self.state = state
        self.changed = {}
        #: Biases of layers that have none.
        self.created = {}

    def has(self, name):
        return name in self.state

    def shape(self, name):
        if name not in self.state:
            raise ValueError(f"the backbone has no '{name}'")
        return self.state[name].shape

    def double(self, name):
        if name not in self.changed:
            self.shape(name)
            self.changed[name] = self.state[name].to(torch.float64, copy=True)
        return self.changed[name]

    def place(self, name, value):
        """A value of the adapter's own. A classifier of timm's may be a convolution of one pixel."""
        if value.ndim == 2 and self.shape(name)[2:] == (1, 1):
            value = value[..., None, None]
        if tuple(self.shape(name)) != tuple(value.shape):
            raise ValueError(f"'{name}' is {list(self.state[name].shape)} in the backbone, {list(value.shape)} in the adapter")
        self.changed[name] = value.to(torch.float64, copy=True) if value.is_floating_point() else value

    def rows(self, tensor, part, count):
        """The rows of a slice of a fused projection, or all."""
        if part is None:
            return tensor
        start = "qkv".index(part) * count
        return tensor[start : start + count]

    def add(self, path, part, increment):
        """W += D, or its rows for q, k or v."""
        weight = self.double(f"{path}.weight")
        target = self.rows(weight, part, increment.shape[0])
        if target.shape != increment.shape:
            raise ValueError(f"an increment of {list(increment.shape)} does not fit '{path}' of {list(weight.shape)}")
        target += increment.to(weight.device)

    def affine(self, path, part, factor, summand):
        """y = a y + b behind a layer; a layer without a bias gets one in `created`. Either may be None."""
        weight = self.double(f"{path}.weight")
        name = f"{path}.bias"
        bias = self.double(name) if self.has(name) else self.created.get(name)
        if factor is not None:
            scale = factor.double().to(weight.device)
            target = self.rows(weight, part, len(scale))
            target *= scale.reshape(-1, *[1] * (weight.ndim - 1))
            if bias is not None:
                target = self.rows(bias, part, len(scale))
                target *= scale
        if summand is not None:
            if bias is None:
                bias = self.created[name] = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
            target = self.rows(bias, part, len(summand))
            target += summand.double().to(weight.device)

    def result(self):
        """The changed tensors, in the dtypes that they had."""
        return {name: tensor.to(self.state[name].dtype) for name, tensor in self.changed.items()}


def attention_of(path):
    """`blocks.0.attn` of `blocks.0.attn.qkv[q]`."""
    return path.rpartition(".")[0]


def fold(folder, draft, host=None):
    """Folds whatever of the adapter is a change of weights. What only a model can tell comes from `host`, see hosts.py.

    @raises NotRead where that is needed and there is no host"""
    method, options = folder.method, folder.options

    def needed(what):
        if host is None:
            raise NotRead(f"'{method}' needs to know {what}, which a state dict does not tell: use attach(model, folder)")
        return host

    for name, value in folder.values.items():
        draft.place(name, value)
    found = {}
    if method in PLAIN and not (method == "kadaptation" and options.get("variant", "paper") != "paper"):
        found = PLAIN[method](folder, draft.shape)
    elif method == "fact":
        if options.get("variant", "tt") == "tt":
            layers = [(path, stage_of(path), _cores(leaves)) for path, leaves in folder.rule("fact")]
        else:
            layers = needed("the order of the layers").fused_layers(options.get("at"))
        found = increments.fact(folder, draft.shape, layers)
    elif method == "noah":
        found = increments.noah(folder, draft.shape, needed("which block a layer is in").noah_rank(options))
    elif method == "intrinsic_subspace":
        layers = needed("the order of the layers").layers_in(options["submodule"], options.get("depth"))
        found, biases = increments.intrinsic_subspace(folder, layers)
        for path, summand in biases.items():
            draft.affine(path, None, None, summand)
    for (path, part), increment in found.items():
        draft.add(path, part, increment)
    if method == "kadaptation" and (options.get("bias") or False) and found:
        for path, part in found:
            draft.affine(path, part, None, folder.part(attention_of(path))["b"])


def affine_maps(folder):
    """The affine maps of an adapter: (path, slice, factor, summand)."""
    if folder.method == "ssf":
        return [(*split_slice(path), leaves["scale"], leaves["shift"]) for path, leaves in folder.rule("ssf")]
    if folder.method == "conv_adapter":
        return [(*split_slice(path), None, leaves["bias"]) for path, leaves in folder.rule("bias")]
    return []


def _cores(leaves):
    """The names of a layer's cores; files have them in the order of the alphabet, a fused projection has q, k, v."""
    return sorted((leaf.split(".")[1] for leaf in leaves), key=lambda name: "qkv".find(name))


def merges(folder):
    """Whether nothing of the adapter needs to stand beside the weights."""
    options = folder.options
    if folder.method == "kadaptation":
        return options.get("variant", "paper") == "paper"
    if folder.method == "conv_adapter":
        return options["variant"] in ("norm", "bias", "linear", "full") and not options.get("finalNorm")
    return folder.method in (*VALUES, *PLAIN, "ssf", "fact", "intrinsic_subspace")


def linear_head(leaves, options):
    """A new classifier as weight and bias. @raises NotRead when it is no linear layer"""
    if options.get("normalize"):
        raise NotRead("a head that brings features to one length is no linear layer: use attach(model, folder)")
    if options.get("hidden"):
        raise NotRead("a head with hidden layers is no linear layer: use attach(model, folder)")
    weight = increments.quantized(leaves["linear.weight"], options.get("bits", 32)).double()
    bias = leaves.get("linear.bias", torch.zeros(weight.shape[0])).double()
    if "norm.running_mean" in leaves:
        weight = weight * (leaves["norm.running_var"].double() + options.get("normEps", 1e-5)).rsqrt()
        bias = bias - weight @ leaves["norm.running_mean"].double()
    return weight.float(), bias.float()


def merged_state_dict(folder, state):
    """The backbone's state dict with the adapter of `folder` folded in, computed in float64. The classifier is the
    adapter's.

    @raises NotRead for an adapter that does not merge, or that needs a model; `attach(model, folder)` reads both"""
    adapter = take_apart(folder)
    if not merges(adapter):
        raise NotRead(f"'{adapter.method}' does not merge with these options: attach(model, folder) sets it into a model")
    draft = Draft(state)
    fold(adapter, draft)
    for path, part, factor, summand in affine_maps(adapter):
        if not draft.has(f"{path}.weight"):
            raise NotRead(f"what stands behind '{path}' follows no layer and does not merge: use attach(model, folder)")
        if adapter.standardized and draft.shape(f"{path}.weight")[2:]:
            raise NotRead(
                f"the weight of '{path}' is standardized whenever it is used and takes up nothing: use attach(model, folder)"
            )
        draft.affine(path, part, factor, summand)
    if draft.created:
        layers = ", ".join(sorted(name.removesuffix(".bias") for name in draft.created)[:3])
        raise NotRead(f"{layers} have no bias for what is added behind them: use attach(model, folder), which gives them one")
    out = {name: tensor.clone() for name, tensor in state.items()} | draft.result()
    if adapter.classifier:
        path, leaves = adapter.classifier
        weight, bias = linear_head(leaves, adapter.head)
        pixel = [1, 1] if out.get(f"{path}.weight", weight).ndim == 4 else []
        out[f"{path}.weight"], out[f"{path}.bias"] = weight.reshape(*weight.shape, *pixel), bias
    return out
