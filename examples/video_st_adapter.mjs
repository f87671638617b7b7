/** Video: ST-Adapter in a frozen vision transformer that has seen nothing but single images. */
import { ClipLoader, createCustomModel, MovingShapes, Subset, videoTask } from 'torchgraft';
import { amount, compare, headAlone, pretrain } from './common.mjs';

const newBackbone = () =>
  createCustomModel('vit', { imgSize: 32, patchSize: 4, embedDim: 64, depth: 4, numHeads: 4, numClasses: 8 });
const backbone = newBackbone();
const { mean, std } = backbone.config;
const weights = await pretrain(backbone, { images: 1500, epochs: 3, lr: 1e-3 });

/** An object moves left, right, up or down: only the order of the frames tells. */
function videos(count, seed) {
  const all = new MovingShapes({ count: 2 * count, frames: 8, size: 32, clutter: 0.3, seed });
  return new Subset(
    all,
    [...all.labels.keys()].filter((i) => all.labels[i] < 4), // the others grow, shrink and turn
  );
}
const clips = { frames: 4, size: 32, mean, std };
const train = new ClipLoader({
  dataset: videos(amount(240, 16), 0),
  batchSize: 8,
  shuffle: true,
  clips: { ...clips, crop: 'short_side_jitter' },
});
const val = new ClipLoader({ dataset: videos(amount(80, 8), 1), batchSize: 8, clips });

function build() {
  const model = newBackbone();
  model.loadStateDict(weights);
  return model;
}

await compare({
  models: headAlone(build, ['st_adapter', { kernel: [3, 3, 3], where: 'both' }], { classes: 4 }),
  run: { task: videoTask(), train, val, epochs: amount(12, 1), lr: 0.01 },
});
