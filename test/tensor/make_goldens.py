"""Writes test/tensor/goldens.json with PyTorch 2.13: how it prints tensors, and its random numbers.

Run with a Python that has torch: python test/tensor/make_goldens.py
"""

import json
import math
import pathlib

import torch


def plain(value):
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def printed(name, data, dtype="float32", shape=None, grad=False):
    x = torch.tensor(data, dtype=getattr(torch, dtype))
    if shape is not None:
        x = x.reshape(shape)
    if grad:
        x.requires_grad_()
    return {
        "name": name,
        "data": plain(x.detach().flatten().tolist()) if not x.is_complex() else plain(
            torch.view_as_real(x).flatten().tolist()
        ),
        "dtype": dtype,
        "shape": list(x.shape),
        "requiresGrad": grad,
        "text": str(x),
    }


def ramp(name, n, shape, scale=1.0, offset=0.0, dtype="float32"):
    x = (torch.arange(n, dtype=torch.float64) * scale + offset).to(getattr(torch, dtype)).reshape(shape)
    return {"name": name, "ramp": [n, scale, offset], "dtype": dtype, "shape": list(shape), "text": str(x)}


nan, inf = math.nan, math.inf
prints = [
    printed("scalar", 3.5),
    printed("whole scalar", 3.0),
    printed("int scalar", 7, "int64"),
    printed("bool scalar", True, "bool"),
    printed("negative zero", [-0.0, 0.0]),
    printed("zeros", [[0.0, 0.0], [0.0, 0.0]]),
    printed("whole numbers", [1.0, -20.0, 300.0]),
    printed("fractions", [1.5, -2.25, 3.125]),
    printed("halfway to even", [0.03125, 0.09375, 0.15625, -0.03125, 2.00005]),
    printed("halfway, scientific", [1.03125, 1.09375, 2048.5, 33000.25]),
    printed("scientific", [1.0, 1e-5, 12345.678]),
    printed("scientific whole", [1.0, 123456789.0]),
    printed("large", [1e10, 2e20, -3e38]),
    printed("tiny", [1e-40, 1e-20]),
    printed("three-digit exponents", [1e-300, 1e300], "float64"),
    printed("ratio above 1000", [1.0, 1000.5]),
    printed("ratio below 1000", [1.5, 999.5]),
    printed("nonfinite", [nan, inf, -inf]),
    printed("nonfinite and whole", [nan, 1.0, -inf, 20.0]),
    printed("nonfinite and fractions", [nan, 1.25, inf, -2.5]),
    printed("nonfinite, scientific", [nan, 1e-9, inf, -2.5]),
    printed("float64", [0.1, 0.2], "float64"),
    printed("float16", [0.1, 0.2, 1000.0], "float16"),
    printed("bfloat16", [[0.1], [3.0]], "bfloat16"),
    printed("int64", [[1, -2], [300, 4]], "int64"),
    printed("int64 extremes", [2**63 - 1, -(2**63)], "int64"),
    printed("int32", [1, 2], "int32"),
    printed("int16", [1, -2], "int16"),
    printed("int8", [1, -128], "int8"),
    printed("uint8", [0, 255], "uint8"),
    printed("bool", [[True, False], [False, False]], "bool"),
    printed("all true", [True, True], "bool"),
    printed("complex64", [1 + 2j, -0.5 - 1.25j, 0j], "complex64"),
    printed("complex128", [[1 + 2j], [3 - 4j]], "complex128"),
    printed("complex scalar", 1.5 - 2j, "complex64"),
    printed("empty", []),
    printed("empty int", [], "int64"),
    printed("empty matrix", [], shape=(0, 3)),
    printed("empty cube int", [], "int32", shape=(2, 0, 3)),
    printed("requires grad", [[1.0, 2.5]], grad=True),
    printed("requires grad float64", [1.0, 2.5], "float64", grad=True),
    printed("one per dimension", 5.5, shape=(1, 1, 1, 1)),
    ramp("wrapped line", 60, (60,), 0.1),
    ramp("wrapped rows", 80, (2, 40), 1.0),
    ramp("cube", 24, (2, 3, 4)),
    ramp("four dimensions", 24, (2, 2, 3, 2), 0.5),
    ramp("exactly at the threshold", 1000, (10, 100), 1.0),
    ramp("long vector", 1001, (1001,), 0.25),
    ramp("long int vector", 5000, (5000,), 1.0, 0.0, "int64"),
    ramp("large matrix", 10000, (100, 100), 0.001),
    ramp("large, few rows", 3000, (3, 1000), 1.0),
    ramp("large, few columns", 3000, (1000, 3), 1.0),
    ramp("large cube", 8 * 9 * 20, (8, 9, 20), 0.5, -300.0),
    ramp("suffix on a line of its own", 12, (2, 6), 1234.5678, 0.5, "float64"),
]


def column(name, x, dtype=None):
    x = x.detach()
    return {"name": name, "dtype": str(x.dtype).split(".")[1], "shape": list(x.shape), "values": x.flatten().tolist()}


def seeded(name, make, seed=42):
    torch.manual_seed(seed)
    return {**column(name, make()), "seed": seed}


ones = torch.ones(40)
random = [
    seeded("rand", lambda: torch.rand(7)),
    seeded("rand long", lambda: torch.rand(33)),
    seeded("rand float64", lambda: torch.rand(5, dtype=torch.float64)),
    seeded("rand bfloat16", lambda: torch.rand(5, dtype=torch.bfloat16)),
    seeded("randn short", lambda: torch.randn(3, 5)),
    seeded("randn long", lambda: torch.randn(33)),
    seeded("randn float64", lambda: torch.randn(17, dtype=torch.float64)),
    seeded("randint", lambda: torch.randint(-5, 1000, (9,))),
    seeded("randperm", lambda: torch.randperm(11)),
    seeded("dropout", lambda: torch.nn.functional.dropout(ones, 0.3, True)),
    seeded("bernoulli", lambda: torch.bernoulli(ones * 0.5)),
    seeded("normal_", lambda: torch.empty(20).normal_(1.0, 2.0)),
    seeded("uniform_", lambda: torch.empty(6).uniform_(-3.0, 3.0)),
    seeded("multinomial", lambda: torch.multinomial(torch.tensor([1.0, 2.0, 3.0, 4.0]), 8, True)),
    seeded("rand, large seed", lambda: torch.rand(3), 2**63 - 25),
    seeded("rand, negative seed", lambda: torch.rand(3), -7),
]
for case in random:
    case["seed"] = str(case["seed"])

target = pathlib.Path(__file__).with_name("goldens.json")
target.write_text(json.dumps({"torch": torch.__version__, "prints": prints, "random": random}, indent=1) + "\n")
print(target, len(prints), len(random))
