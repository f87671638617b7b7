"""Adapters of the package peft beside models of timm and transformers: `peft_jobs.py JOBS`, a JSON file with a list of

    {"source", "options", "weights", "reference", "out"}      the model, its weights, `input.*`, where outputs go
    + {"adapter": FOLDER}                                      loads an adapter
    + {"make": {"type": "LoraConfig", ...}, "save": FOLDER}    makes one with random factors and saves it
"""

import json
import sys
from pathlib import Path

import models

models.torchvision_works()  # which transformers, and so peft, import where it is

import peft  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def run(job):
    model = models.create(job["source"], job.get("options"))
    model = models.load(model, job["weights"])
    inputs = {k.split(".", 1)[1]: v for k, v in load_file(job["reference"]).items() if k.startswith("input.")}
    plain = models.run(model, inputs)
    if "make" in job:
        options = dict(job["make"])
        config = getattr(peft, options.pop("type"))(**options)
        model = peft.get_peft_model(model, config)
        torch.manual_seed(11)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.1)
        model.eval()
        model.save_pretrained(job["save"])
    else:
        model = peft.PeftModel.from_pretrained(model, job["adapter"]).eval()
        kept = peft.get_peft_model_state_dict(model)
        given = load_file(Path(job["adapter"]) / "adapter_model.safetensors")
        missing = sorted(set(given) ^ set(kept))
        assert not missing, f"names that only one side has: {missing[:6]}"
        assert all(torch.equal(given[name], kept[name]) for name in given), "tensors changed in loading"
    base = model.get_base_model()
    outputs = models.run(base, inputs)
    save_file({name: value.contiguous().clone() for name, value in outputs.items()}, job["out"])
    return {"change": max((outputs[name] - plain[name]).abs().max().item() for name in plain if plain[name].shape == outputs[name].shape)}


for job in json.loads(Path(sys.argv[sys.argv.index("--jobs") + 1]).read_text()):
    print(json.dumps(run(job)), flush=True)
