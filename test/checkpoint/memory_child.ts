/**
 * `memory_child write FOLDER` writes one state dict in several containers; `memory_child CONTAINER FOLDER` loads it into a
 * model and prints by how much anonymous memory, which no file stands behind, grew at most meanwhile, as a share of the
 * weights' size.
 */
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { writeAtomically } from '../../lib/checkpoint/atomic.js';
import { ZipWriter } from '../../lib/checkpoint/zipwriter.js';
import { Linear, Module, readCheckpoint, stateDictOf, writeSafetensors, writeTorchFile } from '../../lib/index.js';

const COUNT = 24;
const WIDTH = 1024;

class Layers extends Module {
  constructor() {
    super();
    for (let i = 0; i < COUNT; i++) Object.assign(this, { [`layer${i}`]: new Linear(WIDTH, WIDTH, { bias: false }) });
  }

  forward(): never {
    throw new TypeError('it is loaded, not run');
  }
}

/** A pickle in protocol 0 of tensors, each with a storage of its own that holds `elements` numbers. */
function pickled(names: readonly string[], note: string): string {
  const tensors = names.map((name, i) => {
    const storage = `(S'storage'\nctorch\nFloatStorage\nS'${i}'\nS'cpu'\nI${WIDTH * WIDTH}\ntQ`;
    const sizes = `(I${WIDTH}\nI${WIDTH}\nt(I${WIDTH}\nI1\nt`;
    return `S'${name}'\nctorch._utils\n_rebuild_tensor_v2\n(${storage}I0\n${sizes}I00\nccollections\nOrderedDict\n(tRtRs`;
  });
  return `(dS'note'\nS'${note}'\ns${tensors.join('')}.`;
}

/** The container before zip; with a note of any other length its storages lie elsewhere. */
function writeLegacy(path: string, state: ReadonlyMap<string, Float32Array>, isAligned: boolean): void {
  const names = [...state.keys()];
  const head = (note: string): Buffer =>
    Buffer.from(
      `L119547037146038801333356L\n.I1001\n.(dS'little_endian'\nI01\ns.${pickled(names, note)}` +
        `(l${names.map((_, i) => `S'${i}'\na`).join('')}.`,
    );
  const odd = head('').length % 4;
  const file = openSync(path, 'w');
  writeSync(file, head('x'.repeat((4 - odd) % 4) + (isAligned ? '' : 'x')));
  for (const data of state.values()) {
    const count = Buffer.alloc(8);
    count.writeBigInt64LE(BigInt(data.length));
    writeSync(file, count);
    writeSync(file, Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  }
  closeSync(file);
}

/** An archive that says to be of the other byte order; what numbers it then holds does not matter. */
function writeSwapped(path: string, state: ReadonlyMap<string, Float32Array>): void {
  writeAtomically(path, (sink) => {
    const zip = new ZipWriter(sink);
    zip.addBytes('archive/data.pkl', Buffer.from(pickled([...state.keys()], '')));
    zip.addBytes('archive/byteorder', Buffer.from('big'));
    [...state.values()].forEach((data, i) =>
      zip.addBytes(`archive/data/${i}`, new Uint8Array(data.buffer, data.byteOffset, data.byteLength)),
    );
    zip.finish();
  });
}

const [what = '', folder = ''] = process.argv.slice(2);
const at = (name: string): string => join(folder, name);
const model = new Layers();

if (what === 'write') {
  const state = model.stateDict();
  const plain = new Map([...state].map(([name, tensor]) => [name, tensor.data() as Float32Array]));
  writeSafetensors(at('safetensors'), state);
  writeTorchFile(at('zip'), state);
  writeLegacy(at('legacy'), plain, true);
  writeLegacy(at('legacy_shifted'), plain, false);
  writeSwapped(at('swapped'), plain);
} else {
  const anonymous = `Number(/RssAnon:\\s+(\\d+)/.exec(require('fs').readFileSync('/proc/self/status', 'latin1'))[1])`;
  const seen = new Int32Array(new SharedArrayBuffer(12));
  const sampler = new Worker(
    `const seen = require('worker_threads').workerData;
     Atomics.store(seen, 0, ${anonymous});
     Atomics.notify(seen, 0);
     while (Atomics.wait(seen, 2, 0, 1) === 'timed-out') {
       const now = ${anonymous};
       if (now > Atomics.load(seen, 1)) Atomics.store(seen, 1, now);
     }`,
    { eval: true, workerData: seen, resourceLimits: { maxYoungGenerationSizeMb: 1 } },
  );
  Atomics.wait(seen, 0, 0);
  model.loadStateDict(stateDictOf(readCheckpoint(at(what))));
  await new Promise((resolve) => setTimeout(resolve, 20));
  Atomics.store(seen, 2, 1);
  Atomics.notify(seen, 2);
  await new Promise((resolve) => sampler.once('exit', resolve));
  const [before = 0, most = 0] = seen;
  console.log(((most - before) * 1024) / (4 * COUNT * WIDTH * WIDTH));
}
