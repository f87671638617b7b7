"""Setting an adapter into a model: weights are changed in place, everything else is done by hooks."""

import torch
from torch import nn
from torch.nn import functional as F

from .attention import forwards
from .folder import take_apart
from .hosts import Host, is_standardized
from .increments import quantized, split_slice
from .merge import Draft, affine_maps, fold
from .plans import plan


class Undo:
    """Something that can be taken back, like a hook."""

    def __init__(self, function):
        self.function = function

    def remove(self):
        if self.function:
            self.function()
        self.function = None


class Classifier(nn.Module):
    """An adapter's classifier: norm over the batch's running statistics, length 1, hidden layers, linear layer, as far as
    it has them."""

    def __init__(self, leaves, options):
        super().__init__()
        self.normalize, self.eps = options.get("normalize", False), options.get("normEps", 1e-5)
        mean = leaves.get("norm.running_mean")
        self.register_buffer("mean", mean)
        self.register_buffer("variance", leaves.get("norm.running_var"))
        weight = quantized(leaves["linear.weight"], options.get("bits", 32))
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(leaves["linear.bias"]) if "linear.bias" in leaves else None
        self.hidden = nn.Sequential(*(self._hidden(leaves, 4 * i) for i in range(options.get("hidden", 0))))

    @staticmethod
    def _hidden(leaves, first):
        """One hidden layer: linear, ReLU and the norm by its running statistics."""
        weight, bias = (leaves[f"projection.{first}.{name}"] for name in ("weight", "bias"))
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        norm = nn.BatchNorm1d(weight.shape[0]).eval()
        linear.load_state_dict({"weight": weight, "bias": bias})
        norm.load_state_dict({name: leaves[f"projection.{first + 2}.{name}"] for name in norm.state_dict()})
        return nn.Sequential(linear, nn.ReLU(), norm)

    def forward(self, x):
        if x.ndim == 4:  # where timm has a convolution of one pixel
            return self.forward(x.flatten(1))[..., None, None]
        if self.mean is not None:
            x = (x - self.mean) * (self.variance + self.eps).rsqrt()
        if self.normalize:
            x = F.normalize(x, dim=-1)
        return F.linear(self.hidden(x), self.weight, self.bias)


def _first(args, kwargs):
    return args[0] if args else kwargs["hidden_states"]


def on_input(module, function):
    """A hook that exchanges (or, where the function gives None, only sees) a module's first input."""

    def hook(module, args, kwargs):
        new = function(_first(args, kwargs))
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def on_output(module, function):
    """The same for a module's output, or the first of several."""

    def hook(module, args, out):
        several = isinstance(out, tuple)
        new = function(out[0] if several else out)
        return None if new is None else (new, *out[1:]) if several else new

    return module.register_forward_hook(hook)


def on(end, function):
    module, side = end
    return on_input(module, function) if side == "in" else on_output(module, function)


def attach(model, folder):
    """Sets an adapter folder of torchgraft into a model of timm or transformers, for inference: weights that it changes are
    changed in place, and what does not merge stands beside the layers. The classifier becomes the adapter's.

    Returns handles, whose `remove()` takes everything out again, latest first. @raises NotRead, with nothing done, for what is
    not read; the message says what is"""
    adapter, host = take_apart(folder), Host(model)
    draft = Draft(model.state_dict())
    fold(adapter, draft, host)
    beside = []
    for path, part, factor, summand in affine_maps(adapter):
        module = host.module(path)
        if getattr(module, "weight", None) is None or is_standardized(module):
            beside.append((path, factor, summand))
        else:
            draft.affine(path, part, factor, summand)
    parts = list(plan(adapter, host))
    passes = list(forwards(adapter, host)) if _has_prefix(adapter) else []
    ends = {path: _ends(host, path) for path, *_ in parts if path != "pool"}

    handles = [_install(model, draft)]
    if adapter.classifier:
        handles.append(_classify(model, *adapter.classifier, adapter.head))
    handles += _context(host, adapter)
    for path, factor, summand in beside:
        handles.append(on_output(host.module(path), _affine(host.layout(path), factor, summand)))
    for attention, forward in passes:
        attention.forward = forward
        handles.append(Undo(lambda attention=attention: attention.__dict__.pop("forward", None)))
    for path, kind, function, scale in parts:
        handles += _set(host, path, kind, function, scale, ends.get(path))
    return handles


def _has_prefix(adapter):
    if adapter.method == "adapter":
        return adapter.options["design"] == "multi_head_parallel"
    return adapter.method in ("prefix", "mam")


def _ends(host, path):
    module, part = split_slice(path)
    if module.endswith(".mlp_stream"):
        block = module.removesuffix(".mlp_stream")
        return host.module(f"{block}.norm1"), host.module(f"{block}.drop_path1")
    return host.ends(module)


def _install(model, draft):
    """Puts the changed weights in their places, and biases where there were none."""
    names = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    before = {}
    with torch.no_grad():
        for name, value in draft.result().items():
            before[name] = names[name].clone()
            names[name].copy_(value)
    for name, bias in draft.created.items():
        module = model.get_submodule(name.removesuffix(".bias"))
        module.bias = nn.Parameter(bias.to(module.weight))

    def undo():
        with torch.no_grad():
            for name, value in before.items():
                names[name].copy_(value)
        for name in draft.created:
            model.get_submodule(name.removesuffix(".bias")).bias = None

    return Undo(undo)


def _classify(model, path, leaves, options):
    owner = model.get_submodule(path.rpartition(".")[0])
    last = path.rpartition(".")[2]
    before = getattr(owner, last)
    like = next(model.parameters())
    setattr(owner, last, Classifier(leaves, options).to(like).train(model.training))
    return Undo(lambda: setattr(owner, last, before))


def _affine(layout, factor, summand):
    def function(y):
        def spread(vector):
            return vector.to(y).reshape(-1, *[1] * (y.ndim - 2 if layout == "map" else 0))

        y = y if factor is None else y * spread(factor)
        return y if summand is None else y + spread(summand)

    return function


def _context(host, adapter):
    """Hooks that keep the context: the grid of patches, the tokens before them, the frames of a clip."""
    model, context, handles = host.model, host.context, []

    def begin(x):
        context.prefix, context.frames = getattr(model, "num_prefix_tokens", 0), 1
        if x.ndim == 5:
            context.frames = x.shape[2]
            return x.transpose(1, 2).flatten(0, 1)
        return None

    def grid(x):
        size = model.patch_embed.patch_size
        context.grid = (x.shape[2] // size[0], x.shape[3] // size[1])

    def see(x):
        context.grid = tuple(x.shape[1:3])

    if host.family in ("vit", "swin"):
        handles.append(on_input(model, begin))
    if host.family == "vit":
        handles.append(on_input(model.patch_embed, grid))
        handles.append(_pool(host))
        if adapter.method == "st_adapter":
            handles.append(on_input(model.norm, lambda z: z.unflatten(0, (-1, context.frames)).mean(1)))
    if host.family == "swin":
        handles += [on_input(host.module(block), see) for block in host.blocks]
    return handles


def _pool(host, function=None):
    """The pool of a vision transformer: prompts, which belong to the prefix, are not read; or another one."""
    model, context = host.model, host.context
    own = model.pool

    def pool(x, pool_type=None):
        if function is not None:
            return function(x)
        return own(torch.cat([x[:, : model.num_prefix_tokens], x[:, context.prefix :]], 1), pool_type)

    model.pool = pool
    return Undo(lambda: model.__dict__.pop("pool", None))


def _set(host, path, kind, function, scale, ends):
    """Hooks for one part of a plan."""
    context, seen = host.context, {}
    part = split_slice(path)[1]

    def keep(x):
        seen["x"] = x

    if kind == "pool":
        return [_pool(host, function)]
    start, end = ends
    if path.endswith(".mlp_stream"):
        # Timm's blocks have no module between their halves: what is added to the stream joins what attention adds.
        return [on_input(start, keep), on_output(end, lambda b: b + function(seen["x"] + b) * scale)]
    if kind == "before":
        return [on(start, function)]

    def on_slice(y, change):
        if part is None:
            return change(y)
        width = y.shape[-1] // 3
        at = "qkv".index(part) * width
        return torch.cat([y[..., :at], change(y[..., at : at + width]), y[..., at + width :]], -1)

    def add(y):
        context.target = y
        return on_slice(y, lambda z: z + function(seen["x"]) * scale)

    if kind == "parallel":
        return [on(start, keep), on(end, add)]
    if kind == "replace":
        return [on(start, keep), on(end, lambda y: function(seen["x"]))]
    if kind == "output":
        return [on(end, function)]

    def follow(y):
        context.target = y
        return on_slice(y, lambda z: z + function(z) * scale)

    return [on(end, follow)]
