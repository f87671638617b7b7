"""Writes the small files of test/checkpoint/fixtures with PyTorch, safetensors and NumPy.

Run with a Python that has torch, safetensors and numpy:  python test/checkpoint/make_fixtures.py
The tests compare what they read with the formula in `values`, so no expected numbers are stored.
"""
import argparse
import collections
import io
import pathlib
import pickle
import pickletools
import zipfile

import numpy as np
import torch
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "fixtures"
DTYPES = {
    "float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "int8": torch.int8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64, "uint8": torch.uint8,
    "bool": torch.bool, "complex64": torch.complex64, "complex128": torch.complex128,
}


def values(dtype, count=6):
    """0, 1.5, 3, ... truncated for integers; every second one true for bool; i - 2i for complex."""
    name = str(dtype).split(".")[1]
    if name == "bool":
        return torch.tensor([i % 2 == 1 for i in range(count)])
    if name.startswith("complex"):
        return torch.tensor([complex(i, -2 * i) for i in range(count)], dtype=dtype)
    base = torch.arange(count, dtype=torch.float64) * 1.5
    return base.to(dtype)


def all_dtypes():
    return {name: values(dtype).reshape(2, 3) for name, dtype in DTYPES.items()}


def structured():
    """Views that share a storage, a transposed view, an empty tensor, a scalar, and everyday values around them."""
    base = torch.arange(24, dtype=torch.float32)
    state = collections.OrderedDict()
    state["module.base"] = base
    state["module.rows"] = base.reshape(4, 6)[1:3]
    state["module.transposed"] = base.reshape(4, 6).t()
    state["module.empty"] = torch.empty(0, 5)
    state["module.scalar"] = torch.tensor(7, dtype=torch.int64)
    state["module.expanded"] = torch.tensor([1.0, 2.0]).unsqueeze(1).expand(2, 3)
    state["module.parameter"] = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    return state


def surroundings():
    return {
        "epoch": 12, "best_acc": np.float64(93.25), "seen": np.int64(2**40), "big": 2**70, "negative": -(2**35), "lr": 1e-3,
        "arch": "resnet20-ü", "args": argparse.Namespace(lr=0.1, milestones=[100, 150], dist=None, path=pathlib.PurePosixPath("/data/x")),
        "mean": np.array([[0.5, 0.25], [1, 2]], dtype=np.float32), "fortran": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        "shape": torch.Size([2, 3]), "device": torch.device("cuda", 1), "dtype": torch.bfloat16, "flags": {"a", "b"},
        "frozen": frozenset([1]), "raw": b"\x00\xff", "counts": collections.Counter("aab"),
        "groups": collections.defaultdict(list, {"x": [1]}), "none": None, "yes": True, "nested": ((1, 2), [3, {"k": (4,)}]),
    }


class Scripted(torch.nn.Module):
    """Attributes of every kind that TorchScript keeps."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(2, 3).half(), torch.nn.ReLU())
        self.register_buffer("resolution", torch.tensor(224))
        self.sizes = [1, 2]
        self.rates = {"a": 0.5}
        self.title = "scripted"

    def forward(self, x):
        return self.body(x.half()) * self.sizes[0] * self.rates["a"]


def write_torch():
    torch.save(all_dtypes(), OUT / "dtypes.pt")
    torch.save(all_dtypes(), OUT / "dtypes_legacy.pt", _use_new_zipfile_serialization=False)
    for suffix, options in {"": {}, "_legacy": {"_use_new_zipfile_serialization": False}}.items():
        torch.save({"state_dict": structured(), **surroundings()}, OUT / f"structured{suffix}.pt", **options)
    for protocol in (3, 4, 5):
        torch.save({"model": structured(), **surroundings()}, OUT / f"protocol{protocol}.pt", pickle_protocol=protocol)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    torch.save(model, OUT / "whole_model.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(OUT / "script.pt")
    torch.manual_seed(0)
    torch.jit.script(Scripted()).save(OUT / "script_nested.pt")
    big_endian(OUT / "dtypes.pt", OUT / "dtypes_big_endian.pt")
    repack(OUT / "structured.pt", OUT / "structured_deflated.pt")


def rewrite(source, target, change, compression):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def repack(source, target):
    rewrite(source, target, lambda _, data: data, zipfile.ZIP_DEFLATED)


def big_endian(source, target):
    """What torch.save writes on a big-endian machine: the same pickle, the numbers' bytes reversed."""
    units = [getattr(torch, name).itemsize // (2 if "complex" in name else 1) for name in DTYPES]

    def change(name, data):
        if name.endswith("/byteorder"):
            return b"big"
        parts = name.split("/data/")
        if len(parts) != 2:
            return data
        return np.frombuffer(data, dtype=f"u{units[int(parts[1])]}").byteswap().tobytes()

    rewrite(source, target, change, zipfile.ZIP_STORED)


def write_pickles():
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], dtype=">i4"), "h": np.array([1.5], dtype=np.float16)}
    for protocol in range(2, 6):
        (OUT / f"numpy_protocol{protocol}.pkl").write_bytes(pickle.dumps({"model": arrays, "epoch": 3}, protocol=protocol))
    # Plain data in every protocol; these have no torch magic, so the tests hand them to the machine directly.
    plain = {"none": None, "true": True, "false": False, "ints": [0, 255, 256, 65535, 65536, -1, 2**31, -(2**63), 2**100], "float": [0.5, -1e300, float("inf")],
             "text": "a\\b\n'\"ü\u4e2d", "bytes": b"\x00\x01\xff", "tuple": (), "tuples": (1, (2,), (3, 4, 5), (1, 2, 3, 4)), "set": {1, 2}, "shared": None}
    plain["shared"] = [plain["ints"], plain["ints"]]
    for protocol in range(6):
        (OUT / f"plain_protocol{protocol}.pkl").write_bytes(pickle.dumps(plain, protocol=protocol))
        pickletools.dis(pickle.dumps(plain, protocol=protocol), out=io.StringIO())


def write_safetensors():
    tensors = {name: tensor for name, tensor in all_dtypes().items() if name != "complex128"}
    tensors["empty"] = torch.empty(0, 5)
    tensors["scalar"] = torch.tensor(7, dtype=torch.int64)
    save_file(tensors, OUT / "dtypes.safetensors", metadata={"format": "pt", "note": "ü"})
    save_file({"odd": torch.zeros(2, dtype=torch.float8_e4m3fn)}, OUT / "float8.safetensors")


def write_numpy():
    for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8", "c16"):
        array = (np.arange(6) * 1.5).astype(name).reshape(2, 3)
        np.save(OUT / f"{name}.npy", array)
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(OUT / "big_endian.npy", base.astype(">f4"))
    np.save(OUT / "fortran.npy", np.asfortranarray(base))
    np.save(OUT / "fortran_big.npy", np.asfortranarray(base.astype(">f8")))
    np.save(OUT / "scalar.npy", np.float64(2.5))
    np.save(OUT / "empty.npy", np.zeros((0, 3), np.float32))
    np.save(OUT / "vector.npy", np.arange(3, dtype=np.int64))
    for version in ((2, 0), (3, 0)):
        with open(OUT / f"version{version[0]}.npy", "wb") as file:
            np.lib.format.write_array(file, base, version=version)
    np.save(OUT / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(OUT / "strings.npy", np.array(["a", "bc"]))
    np.save(OUT / "record.npy", np.zeros(2, dtype=[("x", "<f4"), ("y", "<i4")]))
    np.savez(OUT / "stored.npz", w=base, b=np.arange(3))
    np.savez_compressed(OUT / "compressed.npz", w=base, b=np.arange(3))


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(0)
    write_torch()
    write_pickles()
    write_safetensors()
    write_numpy()
    print(f"{len(list(OUT.iterdir()))} files, {sum(path.stat().st_size for path in OUT.iterdir())} bytes")
