"""Where things are in the models of timm and transformers: torchgraft's sites as inputs and outputs of their modules."""

import re
from types import SimpleNamespace

from torch import nn

from .folder import NotRead
from .increments import selects, stage_of

#: Families by the name of the class that a model is, or of one that it derives from.
FAMILIES = {
    "VisionTransformer": "vit",
    "SwinTransformer": "swin",
    "ResNet": "resnet",
    "ResNetV2": "resnetv2",
    "ConvNeXt": "convnext",
    "EfficientNet": "efficientnet",
    "T5PreTrainedModel": "t5",
    "BartPreTrainedModel": "bart",
    "MBartPreTrainedModel": "mbart",
    "RobertaPreTrainedModel": "roberta",
}
BLOCKS = {
    "vit": r"blocks\.\d+",
    "swin": r"layers\.\d+\.blocks\.\d+",
    "resnet": r"layer\d+\.\d+",
    "resnetv2": r"stages\.\d+\.blocks\.\d+",
    "convnext": r"stages\.\d+\.blocks\.\d+",
    "efficientnet": r"blocks\.\d+\.\d+",
    "t5": r"(?:en|de)coder\.block\.\d+",
    "bart": r"model\.(?:en|de)coder\.layers\.\d+",
    "mbart": r"model\.(?:en|de)coder\.layers\.\d+",
    "roberta": r"roberta\.encoder\.layer\.\d+",
}
#: The nonlinearity beside which conv_adapter stands.
ACTIVATION = {"swin": "gelu", "convnext": "gelu", "efficientnet": "silu"}

# A stretch from the input or output of one module to that of another, by the last part of its path; modules are named
# from the module that the stretch lies in, '' being that module itself.
_TRANSFORMER = {
    "attn_path": ("norm1", "out", "drop_path1", "out"),
    "attn_branch": ("norm1", "in", "drop_path1", "out"),
    "mlp_path": ("norm2", "out", "drop_path2", "out"),
    "mlp_branch": ("norm2", "in", "drop_path2", "out"),
    "attn_stream": ("", "in", "", "in"),
    "joined": ("qkv", "in", "proj", "in"),
    "features": ("norm", "out", "norm", "out"),
    "input": ("", "in", "", "in"),
}
_T5_BRANCH = ("layer_norm", "in", "dropout", "out")
_BART = {
    "mlp": ("fc1", "in", "fc2", "out"),
    "mlp_path": ("fc1", "in", "fc2", "out"),
    "mlp_branch": ("fc1", "in", "fc2", "out"),
    "joined": ("q_proj", "in", "out_proj", "in"),
}
SPANS = {
    "vit": _TRANSFORMER | {"tokens": ("blocks.0", "in", "blocks.0", "in")},
    "swin": _TRANSFORMER | {"tokens": ("layers.0", "in", "layers.0", "in")},
    "resnet": {
        "input": ("", "in", "", "in"),
        "stem": ("conv1", "in", "maxpool", "out"),
        "spatial": ("conv2", "in", "act2", "out"),
        "spatial1": ("conv1", "in", "act1", "out"),
        "spatial2": ("conv2", "in", "bn2", "out"),
        "features": ("layer4", "out", "layer4", "out"),
    },
    "resnetv2": {
        "input": ("", "in", "", "in"),
        "spatial": ("norm2", "in", "conv2", "out"),
        "residual": ("", "in", "conv3", "out"),
        "features": ("norm", "out", "norm", "out"),
    },
    "convnext": {
        "input": ("", "in", "", "in"),
        "spatial": ("conv_dw", "in", "conv_dw", "out"),
        "residual": ("conv_dw", "in", "drop_path", "out"),
        "features": ("norm_pre", "out", "norm_pre", "out"),
    },
    "efficientnet": {
        "input": ("", "in", "", "in"),
        "stem": ("conv_stem", "in", "bn1", "out"),
        "features": ("bn2", "out", "bn2", "out"),
    },
    "t5": {"path": ("layer_norm", "out", "dropout", "out"), "joined": ("q", "in", "o", "in")},
    "bart": _BART,
    "mbart": _BART | {"mlp_branch": ("final_layer_norm", "in", "fc2", "out")},
    "roberta": {
        "inner": ("self", "in", "output.dense", "out"),
        "mlp": ("intermediate", "in", "output.dense", "out"),
        "mlp_path": ("intermediate", "in", "output.dense", "out"),
        "mlp_branch": ("intermediate", "in", "output.dense", "out"),
    },
}


def is_standardized(module):
    """Whether a convolution standardizes its weight whenever it is used."""
    return type(module).__name__.startswith(("StdConv2d", "ScaledStdConv2d"))


class Host:
    """A model, and what grafts need to know about the pass that it is in."""

    def __init__(self, model):
        names = [cls.__name__ for cls in type(model).__mro__]
        family = next((FAMILIES[name] for name in names if name in FAMILIES), None)
        if family is None:
            raise NotRead(
                f"{type(model).__name__} is no model that adapters are set into here; timm's VisionTransformer, SwinTransformer, "
                "ResNet, ResNetV2, ConvNeXt, EfficientNet and transformers' T5, BART, mBART, RoBERTa are"
            )
        self.model, self.family = model, family
        self.modules = dict(model.named_modules())
        self.blocks = [name for name in self.modules if re.fullmatch(BLOCKS[family], name)]
        #: Grid of the patches, tokens before them, frames of a clip, and what the present graft is added to.
        self.context = SimpleNamespace(grid=None, prefix=0, frames=1, target=None)

    @property
    def is_text(self):
        return self.family in ("t5", "bart", "mbart", "roberta")

    @property
    def is_post_norm(self):
        return self.family in ("bart", "roberta")

    def module(self, path):
        if path not in self.modules:
            raise ValueError(f"{type(self.model).__name__} has no '{path}': the adapter is of another model")
        return self.modules[path]

    def ends(self, path):
        """Input and output of a site, as (module, 'in' or 'out') each."""
        owner, _, last = path.rpartition(".")
        if self.family == "t5" and re.fullmatch(r"(?:en|de)coder\.block\.\d+\.layer\.\d+", path):
            span, owner = _T5_BRANCH, path
        elif self.family == "resnet" and last == "residual":
            span = ("conv1", "in", "bn3" if f"{owner}.bn3" in self.modules else "bn2", "out")
        elif self.family == "efficientnet" and last == "residual":
            norm = next(n for n in ("bn3", "bn2", "bn1") if f"{owner}.{n}" in self.modules)
            span = ("", "in", norm, "out")
        elif path in self.modules and last not in SPANS[self.family].keys() - {"stem"}:
            module = self.modules[path]
            return (module, "in"), (module, "out")
        else:
            span = SPANS[self.family].get(last)
        if span is None:
            raise NotRead(f"where '{path}' is in a {type(self.model).__name__} is not known here")
        first, side, second, end = span

        def inside(name):
            return self.module(".".join(part for part in (owner, name) if part))

        return (inside(first), side), (inside(second), end)

    def layout(self, path):
        """'map' where features at a site are [B, C, H, W], 'last' where channels come last."""
        if self.family == "convnext":
            return "last" if re.search(r"\.blocks\.\d+\.(mlp|norm)\b", path) else "map"
        return "map" if self.family in ("resnet", "resnetv2", "efficientnet") else "last"

    def block_of(self, path):
        """Index of the block that a site lies in."""
        return next(i for i, block in enumerate(self.blocks) if path == block or path.startswith(f"{block}."))

    def depth_range(self, depth):
        """The blocks that a depth means: an index, several, or a range with both ends, from behind where negative."""
        count = len(self.blocks)
        if depth is None:
            return range(count)
        if isinstance(depth, dict):
            first, last = (value + count if value < 0 else value for value in (depth.get("from", 0), depth.get("to", -1)))
            return range(max(first, 0), min(last, count - 1) + 1)
        return [depth] if isinstance(depth, int) else depth

    def layers_in(self, submodule, depth):
        """Linear layers and convolutions in the submodules of a kind, as (path, shape of the weight, length of the bias)."""
        part = {"block": "", "attention": ".attn", "mlp": ".mlp"}.get(submodule)
        if part is None or self.is_text:
            raise NotRead(f"the submodules '{submodule}' of a {type(self.model).__name__} are not known here")
        wanted = set(self.depth_range(depth))
        roots = [f"{block}{part}." for i, block in enumerate(self.blocks) if i in wanted]
        layers = []
        for path, module in self.modules.items():
            if any(path.startswith(root) for root in roots) and isinstance(module, (nn.Linear, nn.Conv2d)):
                if not is_standardized(module):
                    layers.append((path, module.weight.shape, 0 if module.bias is None else len(module.bias)))
        return layers

    def fused_layers(self, at):
        """The linear layers that factor-tuning changes, as (path, stage, names of the slices)."""
        queries = [] if at is None else at if isinstance(at, list) else [at]
        if any(query.get("role", "linear") != "linear" for query in queries):
            raise NotRead(f"which layers {at} means cannot be told here; use `torchgraft merge`")
        kept = [{key: value for key, value in query.items() if key != "role"} for query in queries]
        layers = []
        for path, module in self.modules.items():
            block = next((block for block in self.blocks if path.startswith(f"{block}.")), None)
            if block is None or not isinstance(module, nn.Linear):
                continue
            if kept and not any(not query or selects(query, path) for query in kept):
                continue
            layers.append((path, stage_of(path), ("q", "k", "v") if path.endswith(".qkv") else ()))
        return layers

    def noah_rank(self, options):
        """Ranks of LoRA by the path of the layer."""
        return lambda path: size_of(options["lora"], self.block_of(path))

    def attentions(self):
        """Paths of the attentions, in order."""
        return [f"{block}.attn" for block in self.blocks]


def size_of(sizes, block):
    """A size of NOAH: one for all blocks, or one for each."""
    return sizes if isinstance(sizes, int) else sizes[block]
