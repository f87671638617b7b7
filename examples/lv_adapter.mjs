/** LV-Adapter: shapes, the drivable area and boxes in one picture, by one frozen trunk, with the names of the classes. */
import {
  clipTextOptions,
  ClipTextTransformer,
  ClipTokenizer,
  createCustomModel,
  graft,
  groupTaskClasses,
  LvMultiTask,
  manualSeed,
  MultiTaskLoader,
  multiTask,
  RoadShapes,
  taskClassNames,
} from 'torchgraft';
import { amount, compare, pretrain } from './common.mjs';

const SIZE = 48;
const channels = [16, 32, 64, 128];
const newTrunk = () =>
  createCustomModel('resnet', { block: 'basic', layers: [1, 1, 1, 1], channels, stemChannels: 16, numClasses: 8 });
const weights = await pretrain(newTrunk());

/** Shapes on a road of two lanes; they are one class. */
class Things extends RoadShapes {
  classNames = taskClassNames({
    sem: ['ground', 'thing'],
    driv: ['direct', 'alternative', 'background'],
    det: ['thing'],
  });
  load(index) {
    const { image, masks, objects } = super.load(index);
    const sem = { ...masks.sem, data: masks.sem.data.map((label) => Math.min(label, 1)) };
    return { image, masks: { ...masks, sem }, objects: { ...objects, labels: objects.labels.map(() => 0) } };
  }
}
const loader = (count, seed) =>
  new MultiTaskLoader({ dataset: new Things({ count, size: SIZE, seed }), batchSize: 8, shuffle: seed === 0 });
const classes = groupTaskClasses(new Things({ count: 1 }).classNames);

const tokenizer = new ClipTokenizer([]); // letter by letter
const textTokens = 13;
const promptLength = 4;
const text = { contextLength: textTokens + promptLength, vocabSize: tokenizer.vocabSize, width: 32, embedDim: 32 };

/** The stage adapt: everything beside the two towers is trained; and a method in the trunk. */
const build = (method, options) => () => {
  manualSeed(2);
  const trunk = newTrunk();
  trunk.loadStateDict(weights);
  const tower = new ClipTextTransformer(clipTextOptions.parse({ ...text, heads: 2, layers: 1 }));
  const model = new LvMultiTask(trunk, tower, {
    tasks: Object.fromEntries(Object.entries(classes).map(([task, names]) => [task, names.length])),
    ...{ size: SIZE, channels: 32, heads: 4, headChannels: 16, promptLength, anchor: 12 },
  });
  const ids = (names) => tokenizer.tokenize(names, { contextLength: textTokens });
  model.setClasses(Object.fromEntries(Object.entries(classes).map(([task, names]) => [task, ids(names)])));
  return { model, adapter: graft(model, method, options, { head: 'train', seed: 1 }) };
};

await compare({
  models: [
    ['adapt', build('linear_probe', {})],
    ['conv_adapter', build('conv_adapter', { reduction: 2 })],
  ],
  run: {
    task: multiTask(),
    train: loader(amount(160, 16), 0),
    val: loader(amount(60, 8), 1),
    epochs: amount(8, 1),
    lr: 0.005,
  },
});
