/** DenseCLIP: a small CLIP learns what shapes are called, and their names then guide a segmentation. */
import {
  CLIP_COLORS,
  ClipTokenizer,
  createCustomClip,
  createDenseClip,
  DataLoader,
  DetectionShapes,
  functional,
  noGrad,
  SegmentationLoader,
  SegmentationShapes,
  segmentTask,
  Trainer,
} from 'torchgraft';
import { amount, compare, stepsFor } from './common.mjs';

const size = 64;
const tokenizer = new ClipTokenizer([]); // letter by letter: no merges are needed for so few words
const visual = { layers: [1, 1, 1], width: 16, outputDim: 64 };
const text = { width: 64, heads: 2, layers: 2 };
const transform = stepsFor({ config: CLIP_COLORS });

/** Pictures of one shape, with its name: what the small CLIP is pretrained on. */
const clutter = 0;
const scenes = new DetectionShapes({ count: amount(4000, 32), size, seed: 7, clutter, objects: [1, 1] });
const named = {
  length: scenes.length,
  classNames: scenes.classNames,
  labels: Uint8Array.from({ length: scenes.length }, (_, i) => scenes.load(i).objects.labels[0]),
  load: (i) => scenes.load(i).image,
  describe: (i) => scenes.describe(i),
};

/** Contrastive pretraining: which of the names belongs to an image? */
const ids = tokenizer.tokenize(scenes.classNames, { contextLength: 12 });
const clip = createCustomClip({
  visualKind: 'resnet',
  visual: { ...visual, heads: 32, imgSize: size },
  text: { ...text, contextLength: 20, vocabSize: tokenizer.vocabSize, embedDim: visual.outputDim },
});
const naming = {
  id: 'naming',
  settings: {},
  step(model, { images, labels }) {
    const { perImage } = model.logits(images, ids);
    const correct = noGrad(() => perImage.argmax(1).eq(labels).sum());
    return { loss: functional.crossEntropy(perImage, labels), correct };
  },
  free(batch) {
    batch.dispose();
  },
};
const pretraining = await new Trainer({
  model: clip,
  train: new DataLoader({ dataset: named, batchSize: 32, shuffle: true, transform }),
  task: naming,
  epochs: amount(9, 1),
  optimizer: { kind: 'adamw', lr: 3e-3 },
  schedule: { kind: 'cosine', warmupEpochs: 0.5 },
  bnStats: 'update',
}).fit();
const { accuracy } = pretraining.history.at(-1).train;
console.log(`pretrained on names: ${(100 * accuracy).toFixed(1)} % right, ${pretraining.seconds.toFixed(0)} s`);

const { classNames: classes } = new SegmentationShapes({ count: 1 });
/** With the language, or the same head on the same frozen image tower alone. */
const build = (language) => () => {
  const options = { classes, tokenizer, textTokens: 12, inputResolution: size, language, channels: 32 };
  const model = createDenseClip({ visual, text }, { ...options, contextDecoder: { width: 64, heads: 2, layers: 1 } });
  model.loadClip(clip.stateDict());
  model.backbone.freeze();
  return { model };
};
const loader = (count, seed) =>
  new SegmentationLoader({
    dataset: new SegmentationShapes({ count, size, seed, clutter }),
    batchSize: 8,
    shuffle: seed === 0,
    transform,
  });

await compare({
  models: [
    ['head alone', build(false)],
    ['dense_clip', build(true)],
  ],
  isFrozen: (name) => /^(backbone\.(?!fpn\d)|text_encoder)/.test(name),
  run: {
    task: segmentTask({ classes: classes.length }),
    train: loader(amount(300, 16), 0),
    val: loader(amount(100, 16), 1),
    epochs: amount(14, 1),
    schedule: { kind: 'cosine', warmupEpochs: 0.5 },
    lr: 5e-3,
  },
});
