"""Models of timm, transformers and torchvision by name, their weights and what they compute: shared by the scripts here."""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


class _Placeholder(type):
    """Stands for any class of torchvision: it can be derived from and asked for its members, and computes nothing."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of torchvision, empty but for placeholders."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []

        def member(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return _Placeholder(name, (), {})

        module.__getattr__ = member
        return module

    def exec_module(self, module):
        pass


def _forget_torchvision():
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


#: Operators for boxes and regions, which no classifier computes with; torchvision's modules speak of them when imported.
OPERATORS = ("nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d", "qnms", "qroi_align")
_declared = []


@functools.cache
def torchvision_works():
    """Whether torchvision is there. Where its operators are for another PyTorch, they are declared and stay empty: its
    classifiers need none of them."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        import torchvision  # noqa: F401

        return True
    except Exception:  # a wheel for another PyTorch fails with whatever its operators raise
        _forget_torchvision()
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        for operator in (name, f"_{name}_backward"):
            with contextlib.suppress(RuntimeError):  # those that there are
                library.define(f"{operator}(Tensor x) -> Tensor")
    _declared.append(library)  # which takes its operators with it when it goes
    try:
        import torchvision  # noqa: F401
    except Exception:
        _forget_torchvision()
        return False
    return True


@contextlib.contextmanager
def optional_torchvision():
    """Lets timm be imported where torchvision is not: its models need none of it, its data transforms would."""
    if torchvision_works():
        yield
        return
    finder = _Absent()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _forget_torchvision()


def import_timm():
    """timm, with or without torchvision."""
    with optional_torchvision():
        import timm
    return timm


def create(source, options=None, pretrained=False):
    """A model in evaluation mode.

    source: `timm:resnet50`, `torchvision:resnet50` (or a class such as `torchvision:SwinTransformer`), or
    `transformers:CLIPModel` (a class; without weights it is built from
    its configuration's defaults and `options`; with `pretrained`, `options["path"]` names the weights).
    options: keyword arguments of timm's and torchvision's functions, of the configuration for transformers.
    """
    library, _, name = source.partition(":")
    options = dict(options or {})
    if library == "timm":
        model = import_timm().create_model(name, pretrained=pretrained, **options)
    elif library == "torchvision":
        if not torchvision_works():
            raise SystemExit("torchvision is not installed, or cannot be imported beside this PyTorch; install one of its release")
        from torchvision import models

        if name in models.list_models():
            model = models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
        else:
            model = getattr(models, name)(**options)
    elif library == "transformers":
        torchvision_works()  # transformers imports it where it is
        import transformers

        kind = getattr(transformers, name, None)
        if kind is None:
            raise SystemExit(f"transformers has no class {name}; give the class of the model, such as CLIPModel")
        if pretrained:
            model = kind.from_pretrained(options.pop("path"), **options)
        else:
            model = kind(kind.config_class(**options))
    else:
        raise SystemExit(f"'{source}': expected timm:NAME, torchvision:NAME or transformers:CLASS")
    return model.eval()


def randomize(model, seed):
    """Weights of a size at which every layer has its effect; fresh models start with zeros that would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, scale):
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.dtype) * scale

    # T5 does not divide products of queries and keys by the root of their width; its start does.
    key_width = getattr(getattr(model, "config", None), "d_kv", None)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(normal(tensor, 0.2).abs() + 0.5)
            elif tensor.ndim > 1:
                scale = key_width**-0.5 if key_width and name.endswith(".q.weight") else 1
                tensor.copy_(normal(tensor, scale * tensor[0].numel() ** -0.5))
            elif name.endswith(("weight", "gamma", "logit_scale")):
                tensor.copy_(1 + normal(tensor, 0.1))
            else:
                tensor.copy_(normal(tensor, 0.1))


def example_inputs(model, seed, batch):
    """Inputs of the shapes that the model was built for, by the names of its arguments; `x` for images of timm and torchvision."""
    generator = torch.Generator().manual_seed(seed + 1)
    config = getattr(model, "config", None)
    if config is None:
        cfg = getattr(model, "pretrained_cfg", None) or {}
        side = getattr(model, "image_size", 224)
        shape = cfg.get("input_size", (3, side, side))
        return {"x": torch.randn(batch, *shape, generator=generator)}

    def images(part):
        size = part.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return torch.randn(batch, part.num_channels, height, width, generator=generator)

    def ids(vocabulary, length):
        return torch.randint(2, vocabulary - 1, (batch, length), generator=generator)

    vision, text = getattr(config, "vision_config", None), getattr(config, "text_config", None)
    if vision is not None and text is not None:
        tokens = ids(text.vocab_size, 12)
        tokens[:, -1] = text.vocab_size - 1  # the end of the text, which CLIP looks for as the largest id
        return {"input_ids": tokens, "pixel_values": images(vision)}
    if model.main_input_name == "pixel_values":
        return {"pixel_values": images(config) if hasattr(config, "image_size") else
                torch.randn(batch, config.num_channels, 224, 224, generator=generator)}
    inputs = {"input_ids": ids(config.vocab_size, 12)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids(config.vocab_size, 9)
    return inputs


def in_double(model, inputs):
    """The same in float64."""
    return model.double(), {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def run(model, inputs):
    """What the model gives for these inputs: tensors by name."""
    with torch.no_grad():
        result = model(inputs["x"]) if set(inputs) == {"x"} else model(**inputs)
    if isinstance(result, torch.Tensor):
        return {"logits": result}
    return {name: value for name, value in result.items() if isinstance(value, torch.Tensor)}


def distinct(state):
    """A state dict without second names of one tensor, which safetensors refuses."""
    seen, kept = set(), {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.numel()) if tensor.numel() else name
        if place not in seen:
            kept[name] = tensor.detach().contiguous()
        seen.add(place)
    return kept


def read_weights(path):
    """A state dict from safetensors (sharded too, by its index), or from torch.save, of which only data is read."""
    path = Path(path)
    if path.name.endswith(".index.json"):
        files = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        return {name: tensor for file in files for name, tensor in load_file(path.parent / file).items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def write_weights(state, path):
    """A state dict as safetensors or as torch.save, by the ending of the path."""
    if str(path).endswith(".safetensors"):
        save_file(distinct(state), path, metadata={"format": "pt"})
    else:
        torch.save(dict(state), path)


def load(model, path):
    """Loads weights strictly and returns the model; names that are second names of one tensor may be missing.

    Archives of Google's vision transformers (.npz) go through timm's own reader.
    """
    if str(path).endswith(".npz"):
        model.load_pretrained(str(path))
        return model
    state = read_weights(path)
    own = model.state_dict()
    first = {}
    for name, tensor in own.items():
        first.setdefault((tensor.data_ptr(), tensor.numel()), []).append(name)
    for names in first.values():
        known = next((state[name] for name in names if name in state), None)
        if known is not None:
            for name in names:
                state.setdefault(name, known)
    if hasattr(model, "save_pretrained") and hasattr(model, "config") and set(state) != set(own):
        return load_as_transformers(model, state)
    model.load_state_dict(state, strict=True)
    return model


def load_as_transformers(model, state):
    """Loads weights under the names of transformers' files, which since release 5 are not those of the modules."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(distinct(state), f"{folder}/model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(folder)
        loaded, report = type(model).from_pretrained(folder, output_loading_info=True)
    wrong = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[kind]}
    if wrong:
        raise SystemExit(f"the weights do not fit {type(model).__name__}: {wrong}")
    return loaded.eval()


def differences(found, expected):
    """The largest difference of each output, as a share of its largest value (or of 1)."""
    rows = {}
    for name, value in expected.items():
        if name not in found:
            raise SystemExit(f"the model gives no output '{name}'; it gives {', '.join(found)}")
        if found[name].shape != value.shape:
            raise SystemExit(f"output '{name}' is {list(found[name].shape)}, expected {list(value.shape)}")
        scale = max(1.0, value.abs().max().item())
        rows[name] = (found[name].double() - value.double()).abs().max().item() / scale
    return rows
