"""Imports weights that torchgraft wrote into a model of timm, transformers or torchvision, and compares outputs.

    python check.py timm:resnet50 --weights ours.pt --reference ours.safetensors

The reference holds `input.NAME` and `output.NAME`, as export.py writes them. Prints the largest difference of each output as a share of
its largest value; ends with 1 when one exceeds --tolerance.
"""

import argparse
import json
import sys
from pathlib import Path

from safetensors.torch import load_file

import models


def check(source, weights, reference=None, options=None, tolerance=1e-5, double=False):
    """Loads the weights, strictly, and compares; returns differences and whether all are small enough."""
    model = models.create(source, options)
    if double:
        model = model.double()  # before loading: weights of float64 keep what they have
    model = models.load(model, weights)
    if reference is None:
        return {"source": source, "differences": {}, "ok": True}
    tensors = load_file(reference)

    def part(kind):
        return {name.split(".", 1)[1]: value for name, value in tensors.items() if name.startswith(f"{kind}.")}

    inputs = part("input")
    if double:
        _, inputs = models.in_double(model, inputs)  # the reference may be one of float32
    rows = models.differences(models.run(model, inputs), part("output"))
    return {"source": source, "differences": rows, "ok": all(value <= tolerance for value in rows.values())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="timm:NAME, torchvision:NAME or transformers:CLASS")
    parser.add_argument("--weights", help="safetensors (or a shards' index), or a file of torch.save")
    parser.add_argument("--reference", help="inputs and expected outputs; without it only names and shapes are checked")
    parser.add_argument("--options", type=json.loads, default={}, help="options of the model, as JSON")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--double", action="store_true", help="compute in float64")
    parser.add_argument("--jobs", help="a JSON file with a list of such checks")
    flags = vars(parser.parse_args())
    jobs = flags.pop("jobs")
    if not jobs and not (flags["source"] and flags["weights"]):
        parser.error("a model and --weights are needed, or --jobs")
    ok = True
    for job in json.loads(Path(jobs).read_text()) if jobs else [flags]:
        result = check(**job)
        ok = ok and result["ok"]
        print(json.dumps(result), flush=True)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
