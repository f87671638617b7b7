/** Segmentation: prompt matchers (SPM) in a frozen ResNet, under a semantic FPN head. */
import {
  createCustomModel,
  createSegmentationModel,
  SegmentationLoader,
  SegmentationShapes,
  segmentTask,
} from 'torchgraft';
import { amount, compare, headAlone, pretrain, stepsFor } from './common.mjs';

const channels = [16, 32, 64, 128];
const newBackbone = () =>
  createCustomModel('resnet', { block: 'basic', layers: [1, 1, 1, 1], channels, stemChannels: 16, numClasses: 8 });
const weights = await pretrain(newBackbone());

/** Pictures of several shapes on clutter; every shape is `figure`, the rest `ground`. */
class Figures extends SegmentationShapes {
  classNames = ['ground', 'figure'];
  load(index) {
    const { image, mask } = super.load(index);
    return { image, mask: { ...mask, data: mask.data.map((label) => Math.min(label, 1)) } };
  }
}
const transform = stepsFor(newBackbone());
const loader = (count, seed) =>
  new SegmentationLoader({
    dataset: new Figures({ count, size: 48, seed }),
    batchSize: 8,
    shuffle: seed === 0,
    transform,
  });

function build() {
  const backbone = newBackbone();
  backbone.loadStateDict(weights);
  return createSegmentationModel('fpn', backbone, { classes: 2, channels: 16 });
}

await compare({
  models: headAlone(build, ['spm', { classes: 2, width: 16 }]),
  run: {
    task: segmentTask({ classes: 2 }),
    train: loader(amount(200, 16), 0),
    val: loader(amount(100, 8), 1),
    epochs: amount(8, 1),
    lr: 0.01,
  },
});
