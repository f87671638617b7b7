"""The files of an adapter folder, and which of its tensors belongs to what."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file

#: What the grafts of each method that have tensors of their own are called.
RULES = {
    "full": (),
    "bitfit": (),
    "linear_probe": (),
    "lora": ("lora",),
    "lokr": ("lokr",),
    "krona": ("krona",),
    "krona_b": ("krona",),
    "krona_b_res": ("krona",),
    "ssf": ("ssf",),
    "fact": ("fact",),
    "kadaptation": ("q", "v"),
    "pevit_lora": ("q", "v"),
    "intrinsic_subspace": (),
    "compacter": ("compacter",),
    "adaptformer": ("adaptmlp",),
    "convpass": ("attn", "mlp"),
    "conv_adapter": ("adapter", "bias", "prompt", "norm"),
    "pro_tuning": ("stem", r"stage\d+"),
    "spm": (r"spm_\d+",),
    "adapter": ("attn", "ffn", "prefix", "prefix_key", "prefix_value"),
    "mam": ("ffn", "prefix_key", "prefix_value"),
    "prefix": ("prefix", "prefix_key", "prefix_value"),
    "vpt": ("prompt", "below", "norm"),
    "prompt_tuning": ("prompt",),
    "noah": ("root", "prompts", "lora", "adapter"),
    "st_adapter": ("adapter_pre_attn", "adapter_pre_mlp"),
}


class NotRead(ValueError):
    """Something that this reader does not do; the message says what does."""


@dataclass
class Folder:
    """An adapter, taken apart."""

    method: str
    options: dict
    #: What the classifier is: 'train', 'frozen', or the options of a new one.
    head: object
    #: Tensors of grafts by the path of their site (`blocks.0.attn.qkv[q]`) and their rule.
    grafts: dict = field(default_factory=dict)
    #: Tensors that several grafts share.
    shared: dict = field(default_factory=dict)
    #: The adapter's own values of tensors of the backbone.
    values: dict = field(default_factory=dict)
    #: Path and tensors of a new classifier.
    classifier: tuple | None = None
    #: Whether the backbone's convolutions standardize their weights.
    standardized: bool = False

    def rule(self, name):
        """The grafts of one rule: (path, tensors) in the order of the file."""
        return [(path, leaves) for (path, rule), leaves in self.grafts.items() if rule == name]

    def part(self, name):
        """The tensors of a shared part."""
        if name not in self.shared:
            raise ValueError(f"the folder holds no shared part '{name}'; it has {', '.join(sorted(self.shared)) or 'none'}")
        return self.shared[name]


def read(folder):
    """The config and the tensors of an adapter folder."""
    folder = Path(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    if config.get("format") != "torchgraft":
        raise ValueError(f"{folder} is no adapter folder of torchgraft; one of peft is for peft.PeftModel.from_pretrained")
    return config, load_file(folder / "adapter_model.safetensors")


def take_apart(folder):
    """A `Folder`. @raises NotRead for a method of your own; ValueError for a tensor that fits nothing"""
    config, tensors = read(folder)
    method = config["method"]
    if method not in RULES:
        raise NotRead(f"'{method}' is no method of torchgraft that this reader knows ({', '.join(RULES)})")
    backbone = config.get("backbone", {}).get("name", "")
    out = Folder(method, config["options"], config["head"], standardized=backbone.startswith("resnetv2"))
    rules = "|".join(RULES[method])
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        head = re.fullmatch(r"(.+?)\.head\.((?:norm|projection|linear)\..+)", name)
        graft = re.fullmatch(rf"(.+)\.({rules})\.(.+)", name) if rules else None
        if kind in ("backbone", "buffers"):
            out.values[rest] = tensor
        elif kind == "shared":
            part, leaf = _shared(rest)
            out.shared.setdefault(part, {})[leaf] = tensor
        elif head and isinstance(out.head, dict):
            leaves = out.classifier[1] if out.classifier else {}
            leaves[head.group(2)] = tensor
            out.classifier = (head.group(1), leaves)
        elif graft:
            path, rule, leaf = graft.groups()
            out.grafts.setdefault((path, rule), {})[leaf] = tensor
        else:
            raise ValueError(f"'{name}' is no tensor that '{method}' has")
    return out


def _shared(name):
    """A part's name, which is a path where blocks have parts of their own, and the tensor's name in it."""
    own = re.fullmatch(r"(.+\..+)\.(b|[qv]\.(?:left|right))", name)
    return own.groups() if own else tuple(name.split(".", 1))
