/** Detection: Conv-Adapter in a frozen ResNet, under Faster R-CNN. */
import {
  AnchorGenerator,
  createCustomModel,
  DetectionLoader,
  DetectionShapes,
  detectTask,
  FasterRcnn,
} from 'torchgraft';
import { amount, compare, headAlone, pretrain } from './common.mjs';

const SIZE = 64;
const channels = [16, 32, 64, 128];
const newBackbone = () =>
  createCustomModel('resnet', { block: 'basic', layers: [1, 1, 1, 1], channels, stemChannels: 16, numClasses: 8 });
const weights = await pretrain(newBackbone());

/** Pictures of several shapes on clutter, a box around each; they are one class. */
class Things extends DetectionShapes {
  classNames = ['thing'];
  load(index) {
    const { image, objects } = super.load(index);
    return { image, objects: { ...objects, labels: objects.labels.map(() => 0) } };
  }
}
const loader = (count, seed) =>
  new DetectionLoader({
    dataset: new Things({ count, size: SIZE, seed }),
    batchSize: 8,
    shuffle: seed === 0,
    firstLabel: 1, // 0 is the background
  });

function build() {
  const body = newBackbone();
  body.loadStateDict(weights);
  const { mean, std } = body.config;
  // Everything is smaller than for photographs, so that it trains in a minute.
  return new FasterRcnn({
    body: body.toTrunk(),
    numClasses: 2,
    input: { minSize: SIZE, maxSize: SIZE, mean, std },
    pyramid: { levels: [1, 2, 3], outChannels: 32 },
    anchors: new AnchorGenerator([[12], [16], [24], [32]]),
    rpn: { preNmsTop: { train: 200, test: 100 }, postNmsTop: { train: 60, test: 30 }, batchSize: 64 },
    pool: { outputSize: 5 },
    boxHead: { kind: 'mlp', width: 64 },
    batchSize: 32,
  });
}

await compare({
  models: headAlone(build, ['conv_adapter', { reduction: 2 }]),
  run: {
    task: detectTask(),
    train: loader(amount(200, 16), 0),
    val: loader(amount(60, 8), 1),
    epochs: amount(6, 1),
    lr: 0.005,
  },
});
