/** Names of published BiT files, to ours, which are timm's but for the shape of the classifier. */
import type { KeyMap, KeyRule } from '../checkpoint/index.js';
import type { Tensor } from '../tensor/index.js';

/** timm's classifier is a 1x1 convolution [classes, C, 1, 1]; ours a matrix. */
const CLASSIFIER: KeyMap = [
  { kind: 'squeeze', match: 'head.fc.weight', dim: 3 },
  { kind: 'squeeze', match: 'head.fc.weight', dim: 2 },
];

/** timm's names. Invertible. */
export const timmBitNames: KeyMap = CLASSIFIER;

/** `a`, `b`, `c` of a unit are its convolutions 1, 2, 3. */
const LETTERS = ['a', 'b', 'c'];

/** No published network has stages anywhere near as deep; more would be rules without end. */
const DEEPEST = 1000;

function units(layers: readonly number[], rules: (unit: string, block: string) => KeyRule[]): KeyRule[] {
  if (!layers.every((count) => Number.isInteger(count) && count >= 0 && count <= DEEPEST)) {
    throw new RangeError(
      `BiT names: expected the number of units of each stage, at most ${DEEPEST}, got ${String(layers)}`,
    );
  }
  return layers.flatMap((count, stage) =>
    Array.from({ length: count }, (_, j) =>
      rules(`block${stage + 1}/unit${String(j + 1).padStart(2, '0')}`, `stages.${stage}.blocks.${j}`),
    ).flat(),
  );
}

/** Path of a block in Google's PyTorch code: `body.block1.unit01` for `stages.0.blocks.0`. */
export function bitUnitPath(block: string): string {
  return block.replace(
    /^stages\.(\d+)\.blocks\.(\d+)$/,
    (_, stage: string, j: string) => `body.block${Number(stage) + 1}.unit${String(Number(j) + 1).padStart(2, '0')}`,
  );
}

/** Google's npz files: `resnet/block1/unit01/a/standardized_conv2d/kernel`, kernels [h, w, in, out]. Invertible. */
export function googleBitNames(layers: readonly number[]): KeyMap {
  const kernel = (from: string, to: string): KeyRule[] => [
    { kind: 'rename', from, to },
    { kind: 'permute', match: to, dims: [3, 2, 0, 1] },
  ];
  const norm = (from: string, to: string): KeyRule[] => [
    { kind: 'rename', from: `${from}/gamma`, to: `${to}.weight` },
    { kind: 'rename', from: `${from}/beta`, to: `${to}.bias` },
  ];
  return [
    ...kernel('resnet/root_block/standardized_conv2d/kernel', 'stem.conv.weight'),
    ...units(layers, (unit, block) => [
      ...LETTERS.flatMap((letter, k) => [
        ...kernel(`resnet/${unit}/${letter}/standardized_conv2d/kernel`, `${block}.conv${k + 1}.weight`),
        ...norm(`resnet/${unit}/${letter}/group_norm`, `${block}.norm${k + 1}`),
      ]),
      ...kernel(`resnet/${unit}/a/proj/standardized_conv2d/kernel`, `${block}.downsample.conv.weight`),
    ]),
    ...norm('resnet/group_norm', 'norm'),
    ...kernel('resnet/head/conv2d/kernel', 'head.fc.weight'),
    { kind: 'rename', from: 'resnet/head/conv2d/bias', to: 'head.fc.bias' },
    ...CLASSIFIER,
  ];
}

/**
 * The body of Google's PyTorch code, which Conv-Adapter took over: `body.block1.unit01.gn1.weight`. The last norm is
 * `norm` in the one and `head.gn` in the other. Invertible.
 */
export function bitBodyNames(layers: readonly number[], lastNorm = 'norm'): KeyMap {
  return [
    { kind: 'rename', from: 'root.conv.{leaf}', to: 'stem.conv.{leaf}' },
    ...units(layers, (unit, block): KeyRule[] => {
      const own = `body.${unit.replace('/', '.')}`;
      return [
        { kind: 'rename', from: `${own}.downsample.{leaf}`, to: `${block}.downsample.conv.{leaf}` },
        ...LETTERS.flatMap((_, k): KeyRule[] => [
          { kind: 'rename', from: `${own}.conv${k + 1}.{leaf}`, to: `${block}.conv${k + 1}.{leaf}` },
          { kind: 'rename', from: `${own}.gn${k + 1}.{leaf}`, to: `${block}.norm${k + 1}.{leaf}` },
        ]),
      ];
    }),
    ...(lastNorm === 'norm' ? [] : [{ kind: 'rename', from: `${lastNorm}.{leaf}`, to: 'norm.{leaf}' } as const]),
  ];
}

/** The map for a file with these names. */
export function bitKeyMap(state: ReadonlyMap<string, Tensor>, layers: readonly number[]): KeyMap {
  if (state.has('resnet/root_block/standardized_conv2d/kernel')) return googleBitNames(layers);
  const classifier = state.get('head.conv.weight') ?? state.get('head.fc.weight');
  const shapes = classifier?.ndim === 4 ? CLASSIFIER : [];
  if (!state.has('root.conv.weight')) return shapes;
  return [
    ...bitBodyNames(layers, 'head.gn'),
    { kind: 'rename', from: 'head.conv.{leaf}', to: 'head.fc.{leaf}' },
    ...shapes,
  ];
}
