"""Reads adapter folders of torchgraft in Python.

    from adapters import merged_state_dict, attach
    model.load_state_dict(merged_state_dict("adapter", model.state_dict()))   # methods that change weights
    attach(model, "adapter")                                                  # adaptformer, convpass on timm's ViTs

    python adapters.py adapter --weights backbone.safetensors --out merged.safetensors

The state dict has torchgraft's names, which are timm's for the models that timm has. Merged: full, bitfit, linear_probe,
lora, lokr, krona, ssf. For lora and lokr there is also `torchgraft convert --format peft`; all other methods that merge
become plain weights by `torchgraft merge`.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

MERGED = ("full", "bitfit", "linear_probe", "lora", "lokr", "krona", "ssf")
HOOKED = ("adaptformer", "convpass")


def read(folder):
    """The config and the tensors of an adapter folder."""
    folder = Path(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    if config.get("format") != "torchgraft":
        raise ValueError(f"{folder} is no adapter folder of torchgraft; one of peft is for peft.PeftModel.from_pretrained")
    return config, load_file(folder / "adapter_model.safetensors")


def merged_state_dict(folder, state):
    """The backbone's state dict with the adapter of `folder` folded in, computed in float64. The classifier is the
    adapter's. @raises ValueError for a method that this reader does not merge"""
    config, tensors = read(folder)
    method, options = config["method"], config["options"]
    if method not in MERGED:
        raise ValueError(f"'{method}' is not merged by this reader ({', '.join(MERGED)} are); `torchgraft merge` says whether it can be")
    if options.get("bits", 32) != 32:
        raise ValueError("quantized factors are not decoded here; use `torchgraft merge`")
    out = {name: tensor.clone() for name, tensor in state.items()}
    groups = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind in ("backbone", "buffers"):
            _place(out, rest, tensor)
            continue
        match = re.fullmatch(r"(.+)\.(head|lora|lokr|krona|ssf)\.(.+)", name)
        if match is None:
            raise ValueError(f"'{name}' is not understood")
        path, rule, leaf = match.groups()
        # The head's own leaves begin with its parts, as in `head.fc.head.linear.weight`.
        groups.setdefault((path, rule), {})[leaf] = tensor
    for (path, rule), leaves in groups.items():
        if rule == "head":
            _set_head(out, path, leaves, config["head"])
        elif rule == "ssf":
            _fold_affine(out, path, leaves["scale"], leaves["shift"])
        else:
            _add(out, path, _INCREMENTS[rule](leaves, out, path).double() * _scale(rule, options))
    return out


def _place(out, name, tensor):
    if name not in out:
        raise ValueError(f"the backbone has no '{name}'")
    out[name] = tensor.to(out[name].dtype)


def _scale(rule, options):
    if rule == "krona":
        return options.get("scale", 1)
    if options.get("also"):
        raise ValueError("layers with ranks of their own ('also') are not merged by this reader; use `torchgraft merge`")
    return options.get("alpha", options["rank"]) / options["rank"]


def _lora(leaves, out, path):
    down, up = leaves["down.weight"].double(), leaves["up.weight"].double()
    if down.ndim == 2:
        return up @ down
    module = re.sub(r"\[\w+\]$", "", path)
    groups = 1 if path != module else down.shape[0] // up.shape[1]
    first = down.reshape(groups, down.shape[0] // groups, -1)
    second = up.reshape(groups, up.shape[0] // groups, -1)
    return (second @ first).reshape(up.shape[0], *down.shape[1:])


def _lokr(leaves, out, path):
    leaves = {name: tensor.double() for name, tensor in leaves.items()}
    w1 = leaves.get("w1")
    if w1 is None:
        w1 = leaves["w1_a"] @ leaves["w1_b"]
    w2 = leaves.get("w2")
    if w2 is None and "t2" in leaves:
        w2 = torch.einsum("ijkl,jr,ip->prkl", leaves["t2"], leaves["w2_b"], leaves["w2_a"])
    elif w2 is None:
        w2 = leaves["w2_a"] @ leaves["w2_b"]
        kernel = out[re.sub(r"\[\w+\]$", "", path) + ".weight"].shape[2:]
        w2 = w2.reshape(w2.shape[0], -1, *kernel)
    return torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2.contiguous())


def _krona(leaves, out, path):
    return torch.kron(leaves["A"].double(), leaves["B"].double()).t()


_INCREMENTS = {"lora": _lora, "lokr": _lokr, "krona": _krona}


def _add(out, path, increment):
    """Adds to a layer's weight, or to its rows for q, k or v."""
    match = re.fullmatch(r"(.+)\[(q|k|v)\]", path)
    name = f"{match.group(1) if match else path}.weight"
    if name not in out:
        raise ValueError(f"the backbone has no '{name}'")
    weight = out[name].double()
    if match:
        rows = increment.shape[0]
        start = "qkv".index(match.group(2)) * rows
        weight[start : start + rows] += increment
    else:
        weight += increment
    out[name] = weight.to(out[name].dtype)


def _fold_affine(out, path, scale, shift):
    weight, bias = out.get(f"{path}.weight"), out.get(f"{path}.bias")
    if weight is None or bias is None:
        raise ValueError(f"'{path}' has no weight and bias to fold a scale and a shift into; use `torchgraft merge`")
    scale, shift = scale.double(), shift.double()
    out[f"{path}.weight"] = (weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
    out[f"{path}.bias"] = (bias.double() * scale + shift).to(bias.dtype)


def _set_head(out, path, leaves, head):
    if not isinstance(head, dict) or head.get("normalize") or head.get("bits", 32) != 32:
        raise ValueError("a head that normalizes its features or is quantized is no linear layer")
    weight = leaves["linear.weight"].double()
    bias = leaves.get("linear.bias", torch.zeros(weight.shape[0])).double()
    if "norm.running_mean" in leaves:
        weight = weight * (leaves["norm.running_var"].double() + head.get("normEps", 1e-5)).rsqrt()
        bias = bias - weight @ leaves["norm.running_mean"].double()
    out[f"{path}.weight"], out[f"{path}.bias"] = weight.float(), bias.float()


class _Bypass(nn.Module):
    """What stands beside a branch of a block: the bottleneck of adaptformer, the convolution of convpass."""

    def __init__(self, method, options, leaves, prefix_tokens):
        super().__init__()
        self.method, self.options, self.prefix_tokens = method, options, prefix_tokens
        self.leaves = nn.ParameterDict({name.replace(".", "_"): nn.Parameter(value) for name, value in leaves.items()})

    def forward(self, x):
        leaf = {name: value for name, value in self.leaves.items()}
        scale = leaf["scale"] if "scale" in leaf else self.options.get("scale", 1)
        if self.method == "adaptformer":
            norm = self.options.get("norm", "none")

            def normed(z, where):
                return F.layer_norm(z, z.shape[-1:], leaf["norm_weight"], leaf["norm_bias"]) if norm == where else z

            z = F.relu(F.linear(normed(x, "in"), leaf["down_weight"], leaf.get("down_bias")))
            return normed(F.linear(z, leaf["up_weight"], leaf.get("up_bias")) * scale, "out")

        def act(z):
            return z * torch.sigmoid(1.702 * z)

        z = act(F.linear(x, leaf["down_weight"], leaf["down_bias"]))
        weight, bias, skip = leaf["conv_weight"], leaf["conv_bias"], self.prefix_tokens
        batch, count, channels = z.shape
        side = int((count - skip) ** 0.5)
        middle = weight.shape[-1] // 2
        first = F.linear(z[:, :skip], weight[:, :, middle, middle], bias)
        image = z[:, skip:].transpose(1, 2).reshape(batch, channels, side, side)
        rest = F.conv2d(image, weight, bias, padding=middle).flatten(2).transpose(1, 2)
        return F.linear(act(torch.cat([first, rest], 1)), leaf["up_weight"], leaf["up_bias"]) * scale


def attach(model, folder):
    """Sets an adapter of a method that does not merge beside the blocks of one of timm's vision transformers (square images),
    by hooks, for inference. The classifier becomes the adapter's. Returns the hooks' handles, whose `remove()` takes them out."""
    config, tensors = read(folder)
    method, options = config["method"], config["options"]
    if method not in HOOKED:
        raise ValueError(f"'{method}' has no hooks here ({', '.join(HOOKED)} have)")
    if options.get("bits", 32) != 32:
        raise ValueError("quantized layers are not decoded here")
    parts, head = {}, {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"blocks\.(\d+)\.\w+\.(adaptmlp|attn|mlp)\.(.+)", name)
        if match:
            parts.setdefault((int(match.group(1)), match.group(2)), {})[match.group(3)] = tensor
        elif name.startswith("head.head."):
            head[name.removeprefix("head.head.")] = tensor
        elif name.startswith("backbone.") or name.startswith("buffers."):
            model.get_parameter(name.partition(".")[2]).data.copy_(tensor)
        else:
            raise ValueError(f"'{name}' is not understood; hooks are for timm's vision transformers")
    if head:
        state = {}
        _set_head(state, "head", head, config["head"])
        classes, features = state["head.weight"].shape
        model.head = nn.Linear(features, classes).to(next(model.parameters()).device)
        model.head.load_state_dict({"weight": state["head.weight"], "bias": state["head.bias"]})
    handles = []
    for (index, rule), leaves in parts.items():
        block = model.blocks[index]
        bypass = _Bypass(method, options, leaves, model.num_prefix_tokens).eval()
        branch = "1" if rule == "attn" else "2"
        norm, end = getattr(block, f"norm{branch}"), getattr(block, f"drop_path{branch}")
        if method == "adaptformer" and options.get("placement") == "sequential":
            handles.append(end.register_forward_hook(lambda module, args, out, g=bypass: out + g(out)))
            continue
        seen = {}
        if method == "adaptformer":  # reads the stream itself, convpass what the norm makes of it
            handles.append(norm.register_forward_pre_hook(lambda module, args, s=seen: s.update(x=args[0])))
        else:
            handles.append(norm.register_forward_hook(lambda module, args, out, s=seen: s.update(x=out)))
        handles.append(end.register_forward_hook(lambda module, args, out, g=bypass, s=seen: out + g(s["x"])))
    return handles


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="adapter folder of torchgraft")
    parser.add_argument("--weights", required=True, help="the backbone's weights")
    parser.add_argument("--out", required=True, help="merged weights to write: .safetensors, or a file of torch.save")
    flags = parser.parse_args()
    import models

    models.write_weights(merged_state_dict(flags.adapter, models.read_weights(flags.weights)), flags.out)


if __name__ == "__main__":
    main()
