"""`reader_jobs.py --jobs FILE`: adapter folders of torchgraft beside models of Python, by scripts/interop/adapters.py."""

import json
import sys
import traceback
from pathlib import Path

from safetensors.torch import load_file, save_file

import adapters
import models


def largest(a, b):
    return (a - b).abs().max().item()


def answer(job):
    inputs = {name.removeprefix("input."): value for name, value in load_file(job["reference"]).items()}
    model = models.load(models.create(job["source"], job["options"]), job["weights"])
    if "x" in inputs:
        model.to(inputs["x"].dtype)
    clips = inputs.get("x") is not None and inputs["x"].ndim == 5  # which a plain model of images does not read
    before = None if clips else models.run(model, inputs)["logits"]
    handles = adapters.attach(model, job["adapter"])
    out = {"attached": models.run(model, inputs)["logits"]}
    for handle in reversed(handles):
        handle.remove()
    left = 0 if clips else largest(models.run(model, inputs)["logits"], before)
    refusal = ""
    try:
        state = adapters.merged_state_dict(job["adapter"], model.state_dict())
    except adapters.NotRead as error:
        refusal = str(error)
    else:
        model.load_state_dict(state)
        out["merged"] = models.run(model, inputs)["logits"]
    save_file({name: value.contiguous() for name, value in out.items()}, job["out"])
    return {"change": 1 if clips else largest(out["attached"], before), "left": left, "refusal": refusal, "error": ""}


def refused(job):
    model = models.create(job["source"], job["options"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        adapters.attach(model, job["adapter"])
        error = ""
    except adapters.NotRead as reason:
        error = str(reason)
    same = all(value.equal(before[name]) for name, value in model.state_dict().items())
    return {"error": error, "same": same, "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())}


for job in json.loads(Path(sys.argv[sys.argv.index("--jobs") + 1]).read_text()):
    try:
        row = answer(job) if "out" in job else refused(job)
    except Exception:
        row = {"error": traceback.format_exc()}
    print(json.dumps(row), flush=True)
