/** A training run in a process of its own, to be killed: `node child.js OUT [resume]`. Prints a digest of the weights. */
import { createHash } from 'node:crypto';
import { INTERRUPTED, onInterrupt, Trainer } from '../../lib/train/index.js';
import { ColorData, tinyNet } from './tiny.js';

const [outDir = '', resume] = process.argv.slice(2);
const model = tinyNet(0.3);
using interrupt = onInterrupt();
const result = await new Trainer({
  model,
  train: new ColorData(48, 16, { delay: 3 }),
  val: new ColorData(24, 16, { isFixed: true }),
  epochs: 6,
  optimizer: { kind: 'adamw', lr: 0.05 },
  bnStats: 'update',
  saveEvery: 1,
  logEvery: 1,
  outDir,
  resume: resume === 'resume',
  signal: interrupt.signal,
  onEvent: (e) => {
    if (e.type === 'step') process.stdout.write(`step ${e.step}\n`);
  },
}).fit();
if (result.interrupted) process.exitCode = INTERRUPTED;
else {
  const digest = createHash('sha256');
  for (const [name, t] of model.stateDict()) digest.update(name).update(Buffer.from((t.data() as Float32Array).buffer));
  process.stdout.write(`weights ${digest.digest('hex')} ${result.history.map((r) => r.train.loss).join(' ')}\n`);
}
