"""Reads adapter folders of torchgraft in Python: every method, into models of timm, and of transformers in part.

    from adapters import attach, merged_state_dict
    attach(model, "adapter")                                                  # any method
    model.load_state_dict(merged_state_dict("adapter", model.state_dict()))   # methods that only change weights

    python adapters.py adapter --weights backbone.safetensors --out merged.safetensors
    python adapters.py adapter --weights backbone.safetensors --out merged.safetensors --model timm:resnet50

The state dict has torchgraft's names, which are timm's for the models that timm has. What is not read is refused with the
reason; README.md lists it. The parts are in the package `grafts` beside this file.
"""

import argparse
import json

from grafts import NotRead, attach, merged_state_dict, read

__all__ = ["NotRead", "attach", "merged_state_dict", "read"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="adapter folder of torchgraft")
    parser.add_argument("--weights", required=True, help="the backbone's weights")
    parser.add_argument("--out", required=True, help="merged weights to write: .safetensors, or a file of torch.save")
    parser.add_argument("--model", help="timm:NAME or transformers:CLASS, for adapters that need to know the model")
    parser.add_argument("--options", type=json.loads, default={}, help="options of the model, as JSON")
    flags = parser.parse_args()
    try:
        state = write_merged(flags)
    except NotRead as reason:
        parser.exit(2, f"{reason}\n")
    print(json.dumps({"out": flags.out, "tensors": len(state)}))


def write_merged(flags):
    """Writes what the command asks for, and returns it. Raises NotRead before anything is written."""
    import models
    from grafts.folder import take_apart
    from grafts.merge import merges

    if not merges(take_apart(flags.adapter)):
        raise NotRead("this adapter does not merge: attach(model, folder) sets it into a model")
    if not flags.model:
        try:
            state = merged_state_dict(flags.adapter, models.read_weights(flags.weights))
        except NotRead as reason:
            raise NotRead(f"{reason}; here --model timm:NAME does") from None
    else:
        model = models.load(models.create(flags.model, flags.options), flags.weights)
        attach(model, flags.adapter)
        state = model.state_dict()
    models.write_weights(state, flags.out)
    return state


if __name__ == "__main__":
    main()
