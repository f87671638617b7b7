/** Segmentation: prompt matchers (SPM) in a frozen ResNet, under a semantic FPN head. */
import { createCustomModel, createSegmentationModel, segmentTask } from 'torchgraft';
import { amount, compare, figuresLoader, headAlone, pretrain } from './common.mjs';

const channels = [16, 32, 64, 128];
const newBackbone = () =>
  createCustomModel('resnet', { block: 'basic', layers: [1, 1, 1, 1], channels, stemChannels: 16, numClasses: 8 });
const weights = await pretrain(newBackbone());

const loader = figuresLoader(newBackbone(), 48);

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
