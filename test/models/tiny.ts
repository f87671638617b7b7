/** Small members of every family, for tests that run over all of them. */
import { type Backbone, createCustomModel, createModel } from '../../lib/models/index.js';
import { fans } from '../../lib/nn/init.js';
import { noGrad, rand, randn } from '../../lib/tensor/index.js';

export interface Tiny {
  readonly name: string;
  readonly make: () => Backbone;
  /** Image sizes that it takes. */
  readonly sizes: readonly (readonly [height: number, width: number])[];
  readonly channels?: number;
  /** Parameters that no output depends on: published files hold tensors that nothing reads. */
  readonly unused?: RegExp;
}

const resnet = { layers: [1, 2, 1], channels: [8, 12, 16], stemChannels: 8, numClasses: 5, zeroInitLast: false };
const vit = { imgSize: 16, patchSize: 4, embedDim: 24, depth: 2, numHeads: 3, numClasses: 5 };
const maps = [
  [32, 32],
  [41, 29],
] as const;

export const tinyModels: readonly Tiny[] = [
  { name: 'resnet basic', make: () => createCustomModel('resnet', { ...resnet, block: 'basic' }), sizes: maps },
  {
    name: 'resnet bottleneck',
    make: () => createCustomModel('resnet', { ...resnet, block: 'bottleneck' }),
    sizes: maps,
  },
  {
    name: 'resnet with deep stem, average skip, groups, biases, stochastic depth',
    make: () =>
      createCustomModel('resnet', {
        ...resnet,
        block: 'bottleneck',
        stemType: 'deep',
        stemWidth: 4,
        avgDown: true,
        cardinality: 2,
        baseWidth: 32,
        convBias: true,
        dropPathRate: 0.1,
        inChans: 2,
      }),
    sizes: maps,
    channels: 2,
  },
  { name: 'cifar_resnet20', make: () => createModel('cifar_resnet20', { channels: [4, 8, 12] }), sizes: maps },
  { name: 'vit', make: () => createCustomModel('vit', vit), sizes: [[16, 16]] },
  {
    name: 'vit of any size, mean pool, registers, layer scale',
    make: () =>
      createCustomModel('vit', {
        ...vit,
        dynamicImgSize: true,
        globalPool: 'avg',
        regTokens: 2,
        initValues: 0.5,
        qkvBias: false,
      }),
    sizes: [
      [16, 16],
      [8, 20],
    ],
  },
  {
    name: 'vit without class token, oblong images',
    make: () =>
      createCustomModel('vit', {
        ...vit,
        imgSize: [12, 20],
        classToken: false,
        globalPool: 'avg',
        fcNorm: false,
        noEmbedClass: true,
      }),
    sizes: [[12, 20]],
  },
  {
    name: 'resnetv2',
    make: () =>
      createCustomModel('resnetv2', {
        layers: [1, 2],
        channels: [16, 32],
        stemChannels: 8,
        normGroups: 4,
        numClasses: 5,
        dropPathRate: 0.1,
      }),
    sizes: maps,
  },
  {
    name: 'efficientnet_v2',
    make: () =>
      createCustomModel('efficientnet_v2', {
        stages: [
          'cn_r1_k3_s1_e1_c8_skip',
          'er_r2_k3_s2_e4_c16_se0.25',
          'ir_r2_k3_s1_e4_c16',
          'ir_r2_k5_s2_e4_c24_se0.25',
        ],
        stemChannels: 8,
        headChannels: 32,
        numClasses: 5,
        dropPathRate: 0.1,
      }),
    sizes: maps,
  },
  {
    name: 'clip_resnet',
    make: () =>
      createCustomModel('clip_resnet', {
        layers: [1, 2],
        width: 8,
        heads: 4,
        outputDim: 10,
        imgSize: 32,
        numClasses: 5,
        dropPathRate: 0.1,
      }),
    sizes: [
      [32, 32],
      [16, 64],
    ],
  },
  {
    name: 'clip_resnet of any size',
    make: () =>
      createCustomModel('clip_resnet', {
        layers: [1, 1],
        width: 8,
        heads: 4,
        outputDim: 10,
        imgSize: 32,
        numClasses: 5,
        dynamicImgSize: true,
        downsampleBias: true,
        convBias: true,
      }),
    sizes: [
      [32, 32],
      [40, 24],
    ],
  },
  {
    name: 'clip_vit',
    make: () =>
      createCustomModel('clip_vit', {
        imgSize: 16,
        patchSize: 4,
        embedDim: 24,
        depth: 2,
        numHeads: 3,
        projDim: 10,
        numClasses: 5,
      }),
    sizes: [
      [16, 16],
      [8, 32],
    ],
  },
  {
    name: 'ghostnet',
    make: () =>
      createCustomModel('ghostnet', {
        stages: [[[3, 16, 16, 0, 1]], [[3, 24, 16, 0, 2]], [[5, 32, 24, 0.25, 1]], [[5, 32, 24, 0.25, 2]]],
        headChannels: 16,
        numClasses: 5,
        dropPathRate: 0.1,
      }),
    sizes: maps,
  },
  {
    name: 'ghost_resnet',
    make: () =>
      createCustomModel('ghost_resnet', {
        layers: [1, 2],
        channels: [8, 12],
        stemChannels: 8,
        numClasses: 5,
        dropPathRate: 0.1,
      }),
    sizes: maps,
    unused: /\.(weight[12]|bn[12]\.(weight|bias))$/,
  },
  {
    name: 'g_ghost_regnet',
    make: () =>
      createCustomModel('g_ghost_regnet', {
        layers: [1, 1, 4, 3],
        widths: [8, 16, 24, 32],
        groupWidth: 8,
        stemChannels: 8,
        numClasses: 5,
        dropPathRate: 0.1,
      }),
    sizes: maps,
  },
  {
    name: 'hatnet',
    make: () =>
      createCustomModel('hatnet', {
        dims: [8, 8, 16, 16],
        headDim: 4,
        depths: [1, 1, 1, 1],
        expansions: [2, 2, 2, 2],
        windows: [4, 2, 2, 1],
        pools: [4, 2, 1, 1],
        kernelSizes: [3, 5, 3, 3],
        numClasses: 5,
        dropPathRate: 0.1,
      }),
    sizes: [
      [32, 32],
      [32, 61],
    ],
    unused: /proj_norm/,
  },
  {
    name: 'hornet',
    make: () =>
      createCustomModel('hornet', {
        depths: [1, 1, 1],
        baseDim: 8,
        orders: [1, 3, 4],
        scales: [1, 0.5, 1 / 3],
        filters: [7, 5, [4, 3]],
        layerScale: 0.5,
        numClasses: 5,
        dropPathRate: 0.1,
      }),
    sizes: [
      [32, 32],
      [16, 48],
    ],
  },
  {
    name: 'hornet isotropic',
    make: () =>
      createCustomModel('hornet_isotropic', {
        dim: 16,
        depth: 2,
        patchSize: 8,
        order: 3,
        filter: [4, 3],
        layerScale: null,
        numClasses: 5,
      }),
    sizes: [
      [32, 32],
      [24, 40],
    ],
  },
  {
    name: 'swin',
    make: () =>
      createCustomModel('swin', {
        imgSize: 32,
        embedDim: 12,
        depths: [2, 2],
        numHeads: [2, 3],
        windowSize: 4,
        numClasses: 5,
        dropPathRate: 0.1,
      }),
    sizes: [[32, 32]],
  },
  {
    name: 'swin of any size, oblong windows, absolute positions',
    make: () =>
      createCustomModel('swin', {
        imgSize: [40, 56],
        embedDim: 8,
        depths: [2, 2],
        numHeads: [2, 4],
        windowSize: [4, 6],
        qkvBias: false,
        ape: true,
        dynamicImgSize: true,
        numClasses: 5,
      }),
    sizes: [
      [40, 56],
      [28, 52],
    ],
  },
  {
    name: 'convnext',
    make: () =>
      createCustomModel('convnext', { depths: [1, 2, 1], dims: [8, 12, 16], numClasses: 5, dropPathRate: 0.1 }),
    sizes: maps,
  },
  {
    name: 'convnext without layer scale and stem norm, last norm first',
    make: () =>
      createCustomModel('convnext', {
        depths: [2],
        dims: [12],
        patchSize: 8,
        stemNorm: false,
        kernelSize: 3,
        layerScale: null,
        headNormFirst: true,
        numClasses: 5,
      }),
    sizes: maps.slice(0, 1),
  },
  {
    name: 'as_mlp',
    make: () =>
      createCustomModel('as_mlp', { embedDim: 8, depths: [1, 2], shiftSize: 3, numClasses: 5, dropPathRate: 0.1 }),
    sizes: [
      [32, 32],
      [24, 40],
    ],
  },
  ...[false, true].map((reversible) => ({
    name: `revcol${reversible ? ', reversible' : ''}`,
    make: () =>
      createCustomModel('revcol', {
        channels: [8, 8, 12, 16],
        layers: [1, 1, 1, 1],
        columns: 3,
        numClasses: 5,
        layerScale: 0.5,
        dropPathRate: 0.1,
        huge: reversible,
        reversible,
      }),
    sizes: [
      [32, 32],
      [32, 64],
    ] as const,
  })),
  {
    name: 'internimage',
    make: () =>
      createCustomModel('internimage', {
        channels: 8,
        depths: [1, 2],
        groups: [2, 4],
        mlpRatio: 2,
        layerScale: 0.5,
        postNorm: true,
        offsetScale: 2,
        numClasses: 5,
        dropPathRate: 0.1,
      }),
    sizes: maps,
  },
  {
    name: 'internimage with norms before and after, and the head of CLIP',
    make: () =>
      createCustomModel('internimage', {
        channels: 8,
        depths: [1, 1, 2, 1],
        groups: [1, 2, 4, 4],
        mlpRatio: 1,
        norm: 'BN',
        resPostNorm: true,
        dwKernelSize: 5,
        level2PostNormIds: [0],
        centerFeatureScale: true,
        removeCenter: true,
        clip: { embedDim: 16, stride: 2, heads: 4, outDim: 12 },
        numClasses: 5,
      }),
    sizes: [
      [64, 64],
      [32, 96],
    ],
  },
];

/** Weights and statistics away from their symmetric start, so that every part of the model shows in the output. */
export function randomize(model: Backbone): Backbone {
  noGrad(() => {
    for (const [name, tensor] of model.namedState()) {
      if (!tensor.isFloatingPoint()) continue;
      if (name.endsWith('running_var')) tensor.copy_(rand(tensor.shape).add(0.5));
      else if (tensor.ndim > 1) tensor.copy_(randn(tensor.shape).mul(1 / Math.sqrt(fans(tensor).fanIn)));
      else
        tensor.copy_(
          randn(tensor.shape)
            .mul(0.1)
            .add(name.endsWith('weight') ? 1 : 0),
        );
    }
  });
  return model;
}
