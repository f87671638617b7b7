/** What the examples share: a small backbone pretrained on procedural images, and a fair comparison on it. */
import {
  DataLoader,
  graft,
  headline,
  manualSeed,
  SegmentationLoader,
  SegmentationShapes,
  setNumThreads,
  Shapes,
  Trainer,
  transforms,
} from 'torchgraft';

manualSeed(0);
// One thread adds up in one order: the figures in README.md are the same every time.
setNumThreads(1);

/** `--short`: a few steps only, to see that everything runs. */
export const isShort = process.argv.includes('--short');

/** The larger number, or the smaller one with `--short`. */
export const amount = (whole, short) => (isShort ? short : whole);

/** Preparation of images for a backbone. */
export const stepsFor = ({ config }) => [transforms.toFloat(), transforms.normalize(config.mean, config.std)];

/** Trains `model` to tell the colors of 32 x 32 images, since there is nothing to download; returns its weights. */
export async function pretrain(model, { images = 2500, epochs = 4, lr = 3e-3 } = {}) {
  const loader = (count, seed) =>
    new DataLoader({
      dataset: new Shapes({ task: 'color', count, seed }),
      batchSize: 32,
      shuffle: seed === 0,
      transform: stepsFor(model),
    });
  const { history, seconds } = await new Trainer({
    model,
    train: loader(amount(images, 64), 0),
    val: loader(amount(200, 32), 1),
    epochs: amount(epochs, 1),
    optimizer: { kind: 'adamw', lr },
    bnStats: 'update',
  }).fit();
  const { accuracy } = history.at(-1).val;
  console.log(`pretrained on colors: ${(100 * accuracy).toFixed(1)} % of new images right, ${seconds.toFixed(0)} s`);
  return model.stateDict();
}

/** Pictures of several shapes on clutter; every shape is `figure`, the rest `ground`. */
class Figures extends SegmentationShapes {
  classNames = ['ground', 'figure'];
  load(index) {
    const { image, mask } = super.load(index);
    return { image, mask: { ...mask, data: mask.data.map((label) => Math.min(label, 1)) } };
  }
}

/** Batches of such pictures for a backbone: of seed 0 in random order, to train on; of others in theirs. */
export function figuresLoader(backbone, size) {
  const transform = stepsFor(backbone);
  return (count, seed) =>
    new SegmentationLoader({
      ...{ dataset: new Figures({ count, size, seed }), batchSize: 8, shuffle: seed === 0, transform },
    });
}

/** Copies of everything that a model consists of. */
const snapshot = (model) => model.namedState().map(([name, tensor]) => [name, tensor.detach().clone()]);

/**
 * Trains several models that differ in what is set into the same frozen backbone, prints their scores, and checks that the
 * frozen weights are what they were, bit for bit.
 *
 * @param models [name, build] of each; `build` returns `{ model, adapter }`, or `{ model }` where the model itself has frozen
 *   parts. The first has the head alone; the others must be better
 * @param isFrozen which weights must not change, by name. Default: all, once the adapter is out of the model
 * @param run what `Trainer` is told: task, data, epochs, learning rate
 */
export async function compare({ models, isFrozen = () => true, run: { lr, ...run } }) {
  const scores = [];
  for (const [name, build] of models) {
    manualSeed(1);
    const { model, adapter } = build();
    const before = snapshot(model).filter(([key]) => isFrozen(key));
    const optimizer = { kind: 'adamw', lr };
    const fit = await new Trainer({
      ...{ model, backboneMode: 'eval', optimizer, ...run },
      ...(adapter && { adapter, bnStats: adapter.bnStats }),
    }).fit();
    const score = headline(fit.history.at(-1).val);
    scores.push(score.value);
    const trained = (adapter ?? model).parameters().filter((p) => p.requiresGrad);
    const count = trained.reduce((sum, p) => sum + p.numel(), 0);
    adapter?.disable();
    const now = new Map(model.namedState());
    const changed = before.filter(([key, tensor]) => !now.get(key).equal(tensor));
    if (changed.length > 0)
      throw new Error(`${name} changed frozen weights: ${changed.map(([key]) => key).join(', ')}`);
    console.log(
      `${name.padEnd(13)} ${score.name} ${(100 * score.value).toFixed(1)} %   ${count} parameters trained in ` +
        `${fit.seconds.toFixed(0)} s; ${before.length} frozen tensors unchanged bit for bit`,
    );
  }
  if (!isShort && scores.slice(1).some((score) => !(score > scores[0]))) {
    console.log('Nothing was gained over the head alone.');
    process.exitCode = 1;
  }
}

/** `models` for `compare`: the head alone, and a method under the same head. */
export function headAlone(build, [method, options], head = 'train') {
  const grafted = (id, choices) => () => {
    const model = build();
    return { model, adapter: graft(model, id, choices, { head, seed: 1 }) };
  };
  return [
    ['head alone', grafted('linear_probe', {})],
    [method, grafted(method, options)],
  ];
}
