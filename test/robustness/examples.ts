/** Right calls of public functions, to be spoiled in one place each; and an instance of each class. */
import { mkdirSync, writeFileSync } from 'node:fs';
import * as lib from '../../lib/index.js';
import type { Backbone, Tensor } from '../../lib/index.js';

const { tensor, randn, zeros, ones } = lib;

/** A small network with everything that the methods ask for. */
export const tinyModel = (): Backbone => lib.createModel('cifar_resnet20', { numClasses: 3 });
const tinyVit = (): Backbone =>
  lib.createCustomModel('vit', { numClasses: 3, imgSize: 16, patchSize: 8, embedDim: 16, depth: 1, numHeads: 2 });
const image = (): lib.Image => ({ data: new Uint8Array(8 * 8 * 3).fill(9), width: 8, height: 8, channels: 3 });
const dataset = (): lib.Dataset => new lib.TensorDataset(zeros([6, 3, 8, 8]), [0, 1, 2, 0, 1, 2]);
const loader = (): lib.DataLoader =>
  new lib.DataLoader({ dataset: dataset(), batchSize: 3, transform: [{ kind: 'toFloat' }] });
const parameter = (): lib.Parameter => new lib.Parameter(randn([3, 2]));
const square = (): Tensor => randn([2, 3, 8, 8]);

/** The sandbox's files. */
export function writeFiles(): void {
  mkdirSync('images/a', { recursive: true });
  mkdirSync('images/b', { recursive: true });
  writeFileSync('images/a/1.png', 'no image');
  lib.writeSafetensors('good.safetensors', new Map([['a', ones([2])]]));
  writeFileSync('bad.safetensors', 'nonsense');
  writeFileSync('log.jsonl', '{"a":1}\n{"b"');
  const model = tinyModel();
  lib.graft(model, 'bitfit', {}, { head: { classes: 2 } }).save('adapter');
}

type Calls = () => readonly unknown[][];

/** By path from the package: `graft`, `functional.conv2d`. */
export const examples: Readonly<Record<string, Calls>> = {
  // tensors
  tensor: () => [[[[1, 2], [3, 4]], { dtype: 'float32', requiresGrad: true }]], // prettier-ignore
  zeros: () => [[[2, 3], { dtype: 'int64', device: 'cpu' }]],
  ones: () => [[[2, 3], {}]],
  empty: () => [[[2, 3], { device: 'meta' }]],
  full: () => [[[2, 3], 4, { dtype: 'bool' }]],
  eye: () => [
    [3, 4, {}],
    [3, {}],
  ],
  rand: () => [[[2, 3], {}]],
  randn: () => [[[2, 3], {}]],
  randint: () => [[0, 4, [2, 3], {}]],
  randperm: () => [[5, {}]],
  arange: () => [[5], [0, 5, 2, { dtype: 'int32' }]],
  linspace: () => [[0, 1, 5, {}]],
  fromTypedArray: () => [[new Float32Array(6), [2, 3], 'float32']],
  zerosLike: () => [[square(), { dtype: 'int8' }]],
  onesLike: () => [[square(), {}]],
  emptyLike: () => [[square(), {}]],
  randLike: () => [[square(), {}]],
  randnLike: () => [[square(), {}]],
  fullLike: () => [[square(), 3, {}]],
  call: () => [
    ['aten::add.Tensor', square(), 1, { alpha: 2 }],
    ['aten::add', ones([1]), ones([2])],
  ],
  operator: () => [['aten::add.Tensor']],
  autocast: () => [[{ device: 'cpu', dtype: 'bfloat16', enabled: true }, () => 1]],
  withDefaults: () => [[{ device: 'cpu', dtype: 'float64' }, () => zeros([1])]],
  scope: () => [[() => ones([1])]],
  keep: () => [[ones([1])]],
  grad: () => {
    const x = ones([2], { requiresGrad: true });
    return [[[x.mul(2).sum()], [x], { gradOutputs: [ones([])], retainGraph: true, createGraph: true, allowUnused: true }]]; // prettier-ignore
  },
  applyFunction: () => [
    [{ name: 'f', forward: (x: Tensor) => x.mul(2), backward: ([g]: Tensor[]) => g!.mul(2) }, [ones([2], { requiresGrad: true })]], // prettier-ignore
  ],
  manualSeed: () => [[1], [2n]],
  setRngState: () => [[lib.getRngState('cpu'), 'cpu']],
  slice: () => [[0, 2, 1]],
  // nn
  'functional.conv2d': () => [[square(), randn([4, 3, 3, 3]), null, { stride: 1, padding: 1, dilation: 1, groups: 1 }]],
  'functional.linear': () => [[randn([2, 3]), randn([4, 3]), randn([4])]],
  'functional.softmax': () => [[square(), 1]],
  'functional.layerNorm': () => [[randn([2, 3]), [3], ones([3]), ones([3]), 1e-5]],
  'functional.groupNorm': () => [[square(), 3, ones([3]), ones([3]), 1e-5]],
  'functional.dropout': () => [[square(), 0.5, true]],
  'functional.normalize': () => [
    [square(), {}],
    [square(), 2, 1],
  ],
  'functional.scaledDotProductAttention': () => [[randn([1, 2, 3, 4]), randn([1, 2, 3, 4]), randn([1, 2, 3, 4]), {}]],
  'functional.adaptiveAvgPool2d': () => [
    [square(), 2],
    [square(), [2, 2]],
  ],
  'functional.interpolate': () => [
    [square(), { size: [4, 4], mode: 'bilinear', antialias: true }],
    [square(), { scaleFactor: 2, mode: 'bicubic' }],
  ],
  crossEntropy: () => [[randn([4, 3]), tensor([0, 1, 2, 0], { dtype: 'int64' }), { labelSmoothing: 0.1 }]],
  mseLoss: () => [[randn([4]), randn([4]), { reduction: 'sum' }]],
  bceWithLogits: () => [[randn([4]), ones([4]), {}]],
  klDiv: () => [[randn([4, 2]), ones([4, 2]), {}]],
  Linear: () => [[3, 4, { bias: true }]],
  Conv2d: () => [[3, 4, { kernelSize: 3, stride: 1, padding: [1, 1], dilation: 1, groups: 1, bias: false }]],
  BatchNorm2d: () => [[3, { eps: 1e-5, momentum: 0.1 }]],
  LayerNorm: () => [[[3], { eps: 1e-5 }]],
  GroupNorm: () => [[3, 6, { eps: 1e-5 }]],
  Dropout: () => [[0.5]],
  DropPath: () => [[0.5]],
  Embedding: () => [[4, 3]],
  Sequential: () => [[new lib.Linear(3, 4), new lib.ReLU()], [[new lib.Linear(3, 4)]]],
  ModuleList: () => [[[new lib.Linear(3, 4)]]],
  ModuleDict: () => [[{ a: new lib.Linear(3, 4) }]],
  MaxPool2d: () => [[{ kernelSize: 2, stride: 2, padding: 0 }], [2, {}]],
  AvgPool2d: () => [[{ kernelSize: 2, stride: 2, padding: 0 }], [2, {}]],
  AdaptiveAvgPool2d: () => [[1], [[1, 2]]],
  LayerScale: () => [[3, 1e-5]],
  Flatten: () => [[1, -1]],
  Parameter: () => [[randn([2]), true]],
  Buffer: () => [[randn([2]), { persistent: false }]],
  Context: () => [[{}]],
  Span: () => [[(x: Tensor) => x.mul(2)]],
  site: () => [[new lib.Identity(), { role: 'block', in: 3, out: 3, layout: 'map' }]],
  sitesOf: () => [[tinyModel()]],
  checkpoint: () => [
    [(x: Tensor) => x.mul(2), square()],
    [new lib.ReLU(), square(), new lib.Context()],
  ],
  runBlock: () => [[new lib.ReLU(), square(), new lib.Context()]],
  runBlocks: () => [[[new lib.ReLU()], square(), new lib.Context()]],
  'init.normal_': () => [[zeros([2, 3]), 0, 1]],
  'init.uniform_': () => [[zeros([2, 3]), 0, 1]],
  'init.truncNormal_': () => [[zeros([2, 3]), { mean: 0, std: 1, a: -2, b: 2 }]],
  'init.kaimingUniform_': () => [[zeros([2, 3]), { slope: 0, mode: 'fan_in', nonlinearity: 'relu' }]],
  'init.kaimingNormal_': () => [[zeros([2, 3]), { mode: 'fan_out' }]],
  'init.xavierUniform_': () => [[zeros([2, 3]), 1]],
  'init.orthogonal_': () => [[zeros([2, 3]), 1]],
  'init.dirac_': () => [[zeros([2, 2, 3]), 1]],
  'init.constant_': () => [[zeros([2, 2, 3]), 1]],
  // checkpoints
  writeSafetensors: () => [['out.safetensors', new Map([['a', ones([2])]]), { key: 'value' }]],
  readSafetensors: () => [['good.safetensors', {}], ['bad.safetensors']],
  readCheckpoint: () => [['good.safetensors', {}], ['bad.safetensors']],
  readTorchFile: () => [['bad.safetensors', {}]],
  writeTorchFile: () => [['out.pt', { a: ones([2]), b: 1 }]],
  readNpy: () => [['bad.safetensors']],
  readNpz: () => [['bad.safetensors']],
  writeNpy: () => [['out.npy', ones([2])]],
  writeNpz: () => [
    ['out.npz', { a: ones([2]) }],
    ['out.npz', new Map([['a', ones([2])]])],
  ],
  writeAtomically: () => [['out.bin', (sink: { write?: (b: Uint8Array) => void }) => sink.write?.(new Uint8Array(3))]],
  applyKeyMap: () => [[[{ from: 'a.*', to: 'b.*' }], new Map([['a.x', ones([1])]])]],
  // models
  createModel: () => [
    ['cifar_resnet20', { numClasses: 3 }],
    ['vit_tiny_patch16_224', { numClasses: 0, imgSize: 32 }],
  ],
  createCustomModel: () => [
    ['vit', { numClasses: 3, imgSize: 16, patchSize: 8, embedDim: 16, depth: 1, numHeads: 2 }, 'own'],
    ['resnet', { layers: [1, 1, 1, 1], block: 'basic' }],
    ['cifar_resnet', { depth: 8 }],
  ],
  modelInfo: () => [['resnet18', { numClasses: 2 }]],
  listModels: () => [['vit']],
  loadWeights: () => [[tinyModel(), 'good.safetensors', { strict: false }]],
  loadState: () => [[tinyModel(), new Map([['a', ones([1])]]), {}]],
  resamplePosEmbed: () => [
    [randn([1, 5, 4]), { from: [2, 2], to: [3, 3], prefix: 1 }],
    [randn([1, 5, 4]), [3, 3], 1],
  ],
  editDistance: () => [['abc', 'abd']],
  nearest: () => [['abc', ['abd', 'x'], 2]],
  suggestion: () => [['abc', ['abd', 'x']]],
  VisionTransformer: () => [[{ numClasses: 3, imgSize: 16, patchSize: 8, embedDim: 16, depth: 1, numHeads: 2 }]],
  ResNet: () => [[{ layers: [1, 1, 1, 1], block: 'basic', numClasses: 2 }]],
  CifarResNet: () => [[{ depth: 8, numClasses: 2 }]],
  // adapters
  graft: () => [
    [tinyModel(), 'lora', { rank: 2, alpha: 4 }, { name: 'a', head: { classes: 2 }, seed: 1 }],
    [tinyModel(), 'conv_adapter', { reduction: 4 }, { head: 'frozen' }],
    [tinyVit(), 'ssf', {}, {}],
  ],
  loadAdapter: () => [[tinyModel(), 'adapter', { name: 'again' }]],
  readAdapterFolder: () => [['adapter']],
  adaptersOf: () => [[tinyModel()]],
  findMethod: () => [['lora']],
  methodInfo: () => [['lora']],
  fingerprint: () => [[tinyModel()]],
  parallel: () => [[0.5]],
  sequential: () => [[{ residual: true, scale: 2 }]],
  LoraLinear: () => [[4, 4, 2]],
  ScaleShift: () => [[4]],
  // data
  Shapes: () => [[{ task: 'shape', count: 9, size: 16, seed: 1, clutter: 1 }]],
  TensorDataset: () => [[zeros([2, 3, 8, 8]), [0, 1], ['a', 'b']]],
  Subset: () => [[dataset(), [0, 1]]],
  splitDataset: () => [[dataset(), 0.5, 0]],
  DataLoader: () => [
    [{ dataset: dataset(), batchSize: 2, shuffle: true, seed: 1, transform: [{ kind: 'resize', size: 4 }, { kind: 'toFloat' }], cacheBytes: 1000, prefetch: 1 }], // prettier-ignore
  ],
  decodeImage: () => [['images/a/1.png'], [new Uint8Array(20), 'x']],
  openImageFolder: () => [['images', { valFraction: 0.5, seed: 0 }]],
  ImageFolder: () => [['images', {}]],
  listImages: () => [['images']],
  Pipeline: () => [
    [[{ kind: 'randomCrop', size: 4, padding: 1 }, { kind: 'colorJitter', hue: 0.1 }, { kind: 'toFloat' }]],
  ],
  parseTransforms: () => [[[{ kind: 'randomResizedCrop', size: [4, 4], scale: [0.1, 1], ratio: [0.5, 2] }]]],
  Random: () => [[1, 2, 3]],
  resizeImage: () => [[image(), 4, 4, 'bilinear']],
  cropImage: () => [[image(), { left: 0, top: 0, width: 4, height: 4 }, 0]],
  flipHorizontal: () => [[image()]],
  flipVertical: () => [[image()]],
  imageToTensor: () => [[image()]],
  imageFromTensor: () => [[zeros([3, 4, 4], { dtype: 'uint8' })]],
  adjustBrightness: () => [[image(), 1.5]],
  adjustContrast: () => [[image(), 1.5]],
  adjustSaturation: () => [[image(), 1.5]],
  adjustHue: () => [[image(), 0.1]],
  // metrics
  accuracy: () => [[[0, 1], [0, 1]]], // prettier-ignore
  topKAccuracy: () => [[randn([4, 3]), tensor([0, 1, 2, 0], { dtype: 'int64' }), 2]],
  confusionMatrix: () => [[[0, 1], [0, 1], 2]], // prettier-ignore
  perClassAccuracy: () => [[[[1, 0], [0, 1]]]], // prettier-ignore
  ClassificationMeter: () => [[['a', 'b']], [2]],
  // training
  AdamW: () => [[[parameter()], { lr: 0.1, betas: [0.9, 0.99], eps: 1e-8, weightDecay: 0.1 }], [[{ params: [parameter()], lr: 1 }]]], // prettier-ignore
  Adam: () => [[[parameter()], { lr: 0.1 }]],
  SGD: () => [[[parameter()], { lr: 0.1, momentum: 0.9, nesterov: true }]],
  clipGradNorm: () => [[[parameter()], 1]],
  weightDecayGroups: () => [
    [[['a', parameter()]], {}],
    [new lib.Linear(2, 2), { weightDecay: 1 }],
  ],
  cosine: () => [[{ total: 10, warmup: 2, floor: 0 }]],
  step: () => [[{ at: [1, 2], factor: 0.1 }]],
  constant: () => [[{ warmup: 2 }]],
  Trainer: () => [
    [{ model: new lib.Sequential(new lib.Flatten(), new lib.Linear(192, 3)), train: loader(), val: loader(), epochs: 1, optimizer: { kind: 'sgd', lr: 0.1 }, schedule: { kind: 'cosine', warmupEpochs: 0.5 }, loss: { labelSmoothing: 0.1 }, accumulate: 1, clip: 1, seed: 0, outDir: 'run', resume: false, saveEvery: 1, logEvery: 1 }], // prettier-ignore
  ],
  evaluate: () => [[new lib.Sequential(new lib.Flatten(), new lib.Linear(192, 3)), loader(), { topK: [1] }]],
  readJsonl: () => [['log.jsonl']],
  lineChart: () => [[[{ name: 'a', points: [[0, 1], [1, 2]] }], { title: 't', x: 'x', y: 'y' }]], // prettier-ignore
  scatterChart: () => [[[{ name: 'a', x: 1, y: 2 }], { title: 't', x: 'x', y: 'y' }]],
  htmlReport: () => [[{ title: 't', runs: [], samples: [] }]],
  imageDataUri: () => [[{ data: new Uint8Array(48), width: 4, height: 4 }, 16]],
  progress: () => [[{ stream: process.stderr }]],
};

/** An instance of each class whose methods are called. */
export function instanceOf(path: string, Class: new (...args: unknown[]) => object): object | null {
  if (path === 'Tensor') return randn([2, 3, 4]);
  if (path === 'Adapter') return lib.graft(tinyModel(), 'lora', { rank: 2 }, { head: { classes: 2 } });
  if (path === 'Backbone') return tinyModel();
  if (path === 'SafetensorsFile') return null;
  const calls = examples[path]?.() ?? [[]];
  for (const args of calls) {
    try {
      return new Class(...args);
    } catch {
      // the next example may do
    }
  }
  return null;
}
