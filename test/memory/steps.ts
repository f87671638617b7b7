/** `node steps.js STEPS`: trains a small network with an adapter at constant size; prints how memory went, as JSON. */
import {
  AdamW,
  createCustomModel,
  functional as F,
  graft,
  keep,
  manualSeed,
  memory,
  randint,
  randn,
  scope,
} from '../../lib/index.js';

const steps = Number(process.argv[2]);
const warmUp = Math.floor(steps / 5);
manualSeed(0);
const model = createCustomModel('cifar_resnet', { depth: 8, numClasses: 4 });
const adapter = graft(model, 'conv_adapter', { reduction: 4 }, { head: { classes: 4 } });
const optimizer = new AdamW(adapter.parameters(), { lr: 1e-3 });
const [images, labels] = scope(() => [keep(randn([2, 3, 8, 8])), keep(randint(0, 4, [2]))]);
model.train();

const rss = (): number => process.memoryUsage.rss() / 2 ** 20;
let base = 0;
let highest = 0;
let live: number | null = null;
const counts = new Set<number>();
let last = NaN;
for (let step = 0; step < steps; step++) {
  last = scope(() => {
    const loss = F.crossEntropy(model.run(images), labels);
    loss.backward();
    optimizer.step();
    optimizer.zeroGrad();
    return Number(loss.item());
  });
  if (step % 50 !== 0) continue;
  live ??= step === 0 ? null : memory().tensors;
  counts.add(memory().tensors);
  if (step === warmUp) base = rss();
  if (step > warmUp) highest = Math.max(highest, rss());
}
process.stdout.write(JSON.stringify({ base, growth: highest - base, loss: last, live, counts: [...counts].length }));
