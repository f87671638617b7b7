/** torch -> ours -> torch: equal bytes for every dtype, in both containers and across them, and shards. */
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  readCheckpoint,
  stateDictOf,
  writeSafetensors,
  writeSharded,
  writeTorchFile,
} from '../../lib/checkpoint/index.js';
import { bigTorchArchive } from '../checkpoint/sparse.js';
import { findEnvironment, runPython, temporaryFolder } from './python.js';

const python = await findEnvironment();
const folder = temporaryFolder();

const MAKE = `
import sys, torch
from safetensors.torch import save_file
names = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128",
         "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
torch.manual_seed(0)
state = {}
for name in names:
    dtype = getattr(torch, name)
    raw = torch.randint(0, 2 if name == "bool" else 256, (3, 5 * dtype.itemsize), dtype=torch.uint8)
    state[name] = raw.view(dtype)
    state[name + ".scalar"] = state[name][0, 1].clone()
    state[name + ".turned"] = state[name].t()
    state[name + ".empty"] = torch.empty(0, 4, dtype=dtype)
torch.save(state, sys.argv[1] + "/in.pt")
torch.save(state, sys.argv[1] + "/old.pt", _use_new_zipfile_serialization=False)
dense = {k: v.clone(memory_format=torch.contiguous_format) for k, v in state.items() if not k.startswith(("complex128", "float8_e8m0fnu"))}
save_file(dense, sys.argv[1] + "/in.safetensors")
print(len(state), len(dense))
`;

const COMPARE = `
import sys, torch
sys.path.insert(0, sys.argv[3])
import models
def raw(x):
    return x.contiguous().reshape(-1).view(torch.uint8)
expected = torch.load(sys.argv[1], weights_only=True)
found = models.read_weights(sys.argv[2])
bad = [k for k, v in expected.items() if k in found and (found[k].dtype != v.dtype or found[k].shape != v.shape or not torch.equal(raw(found[k]), raw(v)))]
print(len(found), bad)
`;

describe.skipIf(python.command === null)(`bytes of every dtype${python.reason}`, () => {
  test.each([
    ['in.pt', 'out.pt', 80],
    ['old.pt', 'out.pt', 80],
    ['in.pt', 'out.safetensors', 72],
    ['in.safetensors', 'out.pt', 72],
    ['in.safetensors', 'out.safetensors', 72],
    ['in.safetensors', 'shards.safetensors', 72],
  ] as const)('%s through torchgraft to %s', async (from, to, count) => {
    await runPython(python, ['-c', MAKE, folder]);
    const state = stateDictOf(readCheckpoint(join(folder, from)));
    let out = join(folder, to);
    if (to.endsWith('.pt')) writeTorchFile(out, state);
    else {
      // safetensors has no complex128, and its Python package no float8_e8m0fnu.
      const kept = [...state].filter(([name]) => !name.startsWith('complex128'));
      const known = kept.filter(([name]) => to !== 'out.safetensors' || !name.startsWith('float8_e8m0fnu'));
      if (to === 'shards.safetensors') out = writeSharded(out, known, { maxShardBytes: 300 });
      else writeSafetensors(out, known);
      expect(known.length).toBe(count);
    }
    const text = await runPython(python, [
      '-c',
      COMPARE,
      join(folder, 'in.pt'),
      out,
      join(import.meta.dirname, '../../scripts/interop'),
    ]);
    expect(text.trim()).toBe(`${count} []`);
  });

  test('PyTorch reads our archive of more than 4 GB', async () => {
    const path = join(folder, 'big.pt');
    const size = bigTorchArchive(path);
    const code = `
import sys, torch
state = torch.load(sys.argv[1], weights_only=True, mmap=True)
print(state["big"].nbytes, state["big"][-1].item(), state["behind"].tolist())
`;
    expect((await runPython(python, ['-c', code, path])).trim()).toBe(`${size} 0.0 [1.0, 2.0, 3.0]`);
  });
});
