"""`reader_jobs.py --jobs FILE`: adapter folders of torchgraft beside timm's models, by scripts/interop/adapters.py."""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

import adapters
import models

for job in json.loads(Path(sys.argv[sys.argv.index("--jobs") + 1]).read_text()):
    model = models.load(models.create(job["source"], job["options"]), job["weights"])
    x = load_file(job["reference"])["x"]
    plain = model(x).detach()
    if job["hooks"]:
        handles = adapters.attach(model, job["adapter"])
    else:
        model.load_state_dict(adapters.merged_state_dict(job["adapter"], model.state_dict()))
    out = models.run(model, {"x": x})["logits"]
    save_file({"logits": out.contiguous()}, job["out"])
    print(json.dumps({"change": (out - plain).abs().max().item()}), flush=True)
