/** Segmentation by representation separation on a frozen vision transformer, alone and with LoRA in the transformer. */
import { createCustomModel, createSegmentationModel, graft, RepresentationSeparation, segmentTask } from 'torchgraft';
import { amount, compare, figuresLoader, pretrain } from './common.mjs';

const newBackbone = () =>
  createCustomModel('vit', { imgSize: 32, patchSize: 4, embedDim: 64, depth: 4, numHeads: 4, numClasses: 8 });
const weights = await pretrain(newBackbone(), { images: 1500, epochs: 3, lr: 1e-3 });

const loader = figuresLoader(newBackbone(), 32);

/** A model on the frozen backbone, and what is set into it. */
const build = (head, method, options) => () => {
  const backbone = newBackbone();
  backbone.loadStateDict(weights);
  const model = head(backbone);
  return { model, adapter: graft(model, method, options, { head: 'train', seed: 1 }) };
};
const plain = (backbone) => createSegmentationModel('fcn', backbone, { classes: 2, channels: 32 });
/** Its losses of attention and regions come by themselves: `segmentTask` tells the model the masks. */
const separation = (backbone) => new RepresentationSeparation(backbone, { classes: 2, width: 32 });

await compare({
  models: [
    ['plain head', build(plain, 'linear_probe', {})],
    ['separation', build(separation, 'linear_probe', {})],
    ['with LoRA', build(separation, 'lora', { rank: 4 })],
  ],
  run: {
    task: segmentTask({ classes: 2 }),
    train: loader(amount(240, 16), 0),
    val: loader(amount(100, 8), 1),
    epochs: amount(8, 1),
    lr: 0.005,
  },
});
