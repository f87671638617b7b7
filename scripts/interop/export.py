"""Exports a model of timm, transformers or torchvision for torchgraft, with inputs and outputs to check against.

    python export.py timm:resnet50 --out exported --pretrained
    python export.py transformers:CLIPModel --out exported --random
    python export.py timm:vit_small_patch16_224 --out exported --weights mine.pt --options '{"num_classes": 10}'

Writes weights.safetensors (or weights.pt with --format torch), reference.safetensors (`input.NAME`, `output.NAME`) and
model.json. `torchgraft convert` and `loadWeights` read the weights under the names that they have there.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import models


def export(source, out, options=None, weights=None, pretrained=False, random=False, seed=0, batch=2, format="safetensors", double=False):
    """Writes the three files into the folder `out`."""
    torch.manual_seed(seed)
    model = models.create(source, options, pretrained)
    if weights:
        models.load(model, weights)
    if random:
        models.randomize(model, seed)
    inputs = models.example_inputs(model, seed, batch)
    if double:
        model, inputs = models.in_double(model, inputs)
    outputs = models.run(model, inputs)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    models.write_weights(model.state_dict(), folder / ("weights.safetensors" if format == "safetensors" else "weights.pt"))
    tensors = {f"input.{name}": value for name, value in inputs.items()}
    tensors |= {f"output.{name}": value.contiguous().clone() for name, value in outputs.items()}
    save_file(tensors, folder / "reference.safetensors")
    about = {"source": source, "options": options or {}, "torch": torch.__version__, "outputs": sorted(outputs)}
    (folder / "model.json").write_text(json.dumps(about, indent=2) + "\n")
    return about


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="timm:NAME, torchvision:NAME or transformers:CLASS")
    parser.add_argument("--out", help="folder to write into")
    parser.add_argument("--options", type=json.loads, default={}, help="options of the model, as JSON")
    parser.add_argument("--weights", help="a file of weights to load first")
    parser.add_argument("--pretrained", action="store_true", help="the library's own pretrained weights")
    parser.add_argument("--random", action="store_true", help="random weights under which every layer has its effect")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--format", choices=["safetensors", "torch"], default="safetensors")
    parser.add_argument("--double", action="store_true", help="compute in float64, which tells a wrong layer from rounding")
    parser.add_argument("--jobs", help="a JSON file with a list of such exports, made one after the other")
    flags = vars(parser.parse_args())
    jobs = flags.pop("jobs")
    if jobs:
        for job in json.loads(Path(jobs).read_text()):
            print(json.dumps(export(**job)), flush=True)
    elif flags["source"] and flags["out"]:
        print(json.dumps(export(**flags)))
    else:
        parser.error("a model and --out are needed, or --jobs")


if __name__ == "__main__":
    main()
