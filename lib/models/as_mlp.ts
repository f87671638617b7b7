/**
 * AS-MLP: an MLP architecture that mixes pixels by shifting channels along rows and columns. Lian, Yu, Sun, Gao, ICLR
 * 2022, arXiv 2107.08391. Names are those of the official code (svip-lab/AS-MLP), which this follows in the form that
 * SSF's official code has.
 */
import { z } from 'zod';
import {
  runChain,
  Context,
  Conv2d,
  DropPath,
  Dropout,
  GELU,
  GroupNorm,
  type Identity,
  type Linear,
  Module,
  Sequential,
  site,
  Span,
} from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import { Backbone, type FeatureLevel, type Preprocessing } from './backbone.js';
import { BlockList, classifierSite, convSite, dropPathRateAt, identitySite, poolMap } from './blocks.js';
import { backboneOptions, type Family, imageSize, positive, preprocessing, rate, sizePair } from './family.js';

/** Norm over all channels and pixels of an image, with a scale and a shift per channel. */
function imageNorm(channels: number, role: string): GroupNorm {
  return site(new GroupNorm(1, channels), { role });
}

/**
 * Moves groups of channels of a map [B, C, H, W] along `dim`: of `count` groups of ceil(C / count) channels (the last may
 * be smaller) the k-th moves by k - floor(count / 2) pixels; what comes in from outside is zero.
 */
export function shiftChannels(x: Tensor, count: number, dim: 2 | 3): Tensor {
  const reach = Math.floor(count / 2);
  if (reach === 0) return x;
  const length = x.shape[dim] ?? 0;
  const padded = aten.constantPadNd(x, dim === 3 ? [reach, reach] : [0, 0, reach, reach], 0);
  const groups = padded.split(Math.ceil((x.shape[1] ?? 0) / count), 1);
  return aten.cat(
    groups.map((group, k) => group.narrow(dim, 2 * reach - k, length)),
    1,
  );
}

/** As far as channels move: the convolution that may stand beside a shift. */
function reachOf(shiftSize: number) {
  const padding = Math.floor(shiftSize / 2);
  return { kernel: 2 * padding + 1, padding, stride: 1, activation: 'gelu' } as const;
}

/**
 * conv3(norm2(GELU(conv2_1 h) + GELU(conv2_2 v))), where h and v are u = GELU(norm1(conv1 x)) with its channels shifted
 * along rows and along columns. Maps [B, C, H, W]; all convolutions are 1x1.
 */
class AxialShift extends Module {
  readonly conv1: Conv2d;
  readonly conv2_1: Conv2d;
  readonly conv2_2: Conv2d;
  readonly conv3: Conv2d;
  readonly actn: GELU;
  readonly norm1: GroupNorm;
  readonly norm2: GroupNorm;

  constructor(
    dim: number,
    readonly shiftSize: number,
    bias: boolean,
  ) {
    super();
    const pointwise = (): Conv2d => convSite(dim, dim, { kernelSize: 1, bias });
    this.conv1 = pointwise();
    this.conv2_1 = pointwise();
    this.conv2_2 = pointwise();
    this.conv3 = pointwise();
    this.actn = new GELU();
    this.norm1 = imageNorm(dim, 'inner_norm');
    this.norm2 = imageNorm(dim, 'inner_norm');
    site(this, { role: 'spatial', in: dim, out: dim, layout: 'map', ...reachOf(shiftSize) });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const gelu = (t: Tensor): Tensor => this.actn.run(t, ctx);
    const u = gelu(this.norm1.run(this.conv1.run(x, ctx), ctx));
    const along = gelu(this.conv2_1.run(shiftChannels(u, this.shiftSize, 3), ctx));
    const down = gelu(this.conv2_2.run(shiftChannels(u, this.shiftSize, 2), ctx));
    return this.conv3.run(this.norm2.run(along.add(down), ctx), ctx);
  }
}

/** fc2(GELU(fc1 x)) on each pixel of a map. */
class PointwiseMlp extends Module {
  readonly fc1: Conv2d;
  readonly act: GELU;
  readonly fc2: Conv2d;
  readonly drop: Dropout;

  constructor(dim: number, hidden: number, drop: number) {
    super();
    this.fc1 = convSite(dim, hidden, { kernelSize: 1, bias: true });
    this.act = new GELU();
    this.fc2 = convSite(hidden, dim, { kernelSize: 1, bias: true });
    this.drop = new Dropout(drop);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const parts = [this.fc1, this.act, this.drop, this.fc2, this.drop];
    return runChain(parts, x, ctx);
  }
}

interface BlockOptions {
  readonly dim: number;
  readonly shiftSize: number;
  readonly hidden: number;
  readonly bias: boolean;
  readonly drop: number;
  readonly dropPath: number;
  readonly stage: number;
  readonly depth: number;
}

/** x += axial_shift(norm1 x); x += mlp(norm2 x). Maps [B, C, H, W]. */
class AsMlpBlock extends Module {
  readonly norm1: GroupNorm;
  readonly axial_shift: AxialShift;
  readonly drop_path: DropPath | null;
  readonly norm2: GroupNorm;
  readonly mlp: PointwiseMlp;
  /** x -> axial_shift(norm1 x). */
  readonly residual: Span;

  constructor(o: BlockOptions) {
    super();
    const { dim, stage, depth } = o;
    this.norm1 = imageNorm(dim, 'norm');
    this.axial_shift = new AxialShift(dim, o.shiftSize, o.bias);
    this.drop_path = o.dropPath > 0 ? new DropPath(o.dropPath) : null;
    this.norm2 = imageNorm(dim, 'norm');
    this.mlp = new PointwiseMlp(dim, o.hidden, o.drop);
    this.residual = site(new Span((x, ctx) => this.axial_shift.run(this.norm1.run(x, ctx), ctx)), {
      role: 'residual',
      in: dim,
      out: dim,
      layout: 'map',
      ...reachOf(o.shiftSize),
    });
    site(this, { role: 'block', in: dim, out: dim, layout: 'map', stage, depth });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const path = (t: Tensor): Tensor => (this.drop_path ? this.drop_path.run(t, ctx) : t);
    const y = x.add(path(this.residual.run(x, ctx)));
    return y.add(path(this.mlp.run(this.norm2.run(y, ctx), ctx)));
  }
}

/**
 * Halves a map: the four pixels (0,0), (1,0), (0,1), (1,1) (row, column) of each square on the channel axis, norm, and a
 * 1x1 convolution 4 C -> 2 C without a bias. @throws RangeError for an odd map
 */
class MapMerging extends Module {
  readonly reduction: Conv2d;
  readonly norm: GroupNorm;

  constructor(dim: number) {
    super();
    const reduction = new Conv2d(4 * dim, 2 * dim, { kernelSize: 1, bias: false });
    this.reduction = site(reduction, { role: 'downsample_conv' });
    this.norm = imageNorm(4 * dim, 'downsample_norm');
    site(this, { role: 'downsample', in: dim, out: 2 * dim, layout: 'map', stride: 2 });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const [batch = 0, channels = 0, rows = 0, columns = 0] = x.shape;
    if (rows % 2 !== 0 || columns % 2 !== 0) {
      throw new RangeError(
        `AS-MLP halves its maps, and one of ${rows} x ${columns} is odd; give images whose sides are multiples of ` +
          'the patch size times two for every stage after the first',
      );
    }
    const squares = x.reshape([batch, channels, rows / 2, 2, columns / 2, 2]).permute([0, 5, 3, 1, 2, 4]);
    const merged = squares.reshape([batch, 4 * channels, rows / 2, columns / 2]);
    return this.reduction.run(this.norm.run(merged, ctx), ctx);
  }
}

/** Image to map: convolution and norm. Here, too, the resolution falls, and methods leave it out alike. */
class MapPatchEmbed extends Module {
  readonly proj: Conv2d;
  readonly norm: GroupNorm | null;

  constructor(inChans: number, dim: number, patch: readonly [number, number], hasNorm: boolean) {
    super();
    this.proj = site(new Conv2d(inChans, dim, { kernelSize: patch, stride: patch }), { role: 'downsample_conv' });
    this.norm = hasNorm ? imageNorm(dim, 'downsample_norm') : null;
    site(this, { role: 'patch_embed', in: inChans, out: dim, layout: 'map', kernel: patch, stride: patch });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const map = this.proj.run(x, ctx);
    return this.norm ? this.norm.run(map, ctx) : map;
  }
}

/** The blocks, then (except in the last stage) the merging, as in the official code. The blocks are the `stage` site. */
class AsMlpStage extends Module {
  readonly blocks: BlockList;
  readonly downsample: MapMerging | null;

  constructor(dim: number, stage: number, blocks: BlockList, isLast: boolean) {
    super();
    this.blocks = site(blocks, { role: 'stage', in: dim, out: dim, layout: 'map', stage });
    this.downsample = isLast ? null : new MapMerging(dim);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const parts = this.downsample ? [this.blocks, this.downsample] : [this.blocks];
    return runChain(parts, x, ctx);
  }
}

const options = z.strictObject({
  ...backboneOptions,
  patchSize: imageSize.default(4),
  /** Width of the first stage; each further stage doubles it. */
  embedDim: positive,
  /** Blocks per stage. */
  depths: z.array(positive).min(1),
  /** Into how many groups the channels are cut to be shifted. */
  shiftSize: positive.default(5),
  mlpRatio: z.number().positive().default(4),
  /** Biases of the convolutions around the shifts. */
  asBias: z.boolean().default(true),
  /** Norm on the embedded patches. */
  patchNorm: z.boolean().default(true),
  /** Dropout on the embedded patches and in the MLPs. */
  dropRate: rate.default(0),
});

/** Options of an AS-MLP, defaults filled in. */
export type AsMlpOptions = z.output<typeof options>;

/** AS-MLP. Any image size that can be halved after each stage works. */
export class AsMlp extends Backbone {
  readonly name: string;
  readonly classifier = 'head';
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];

  /** The image batch. */
  readonly input: Identity;
  readonly patch_embed: MapPatchEmbed;
  readonly pos_drop: Dropout;
  readonly layers: Sequential;
  readonly norm: GroupNorm;
  /** The map after the last norm. */
  readonly features: Identity;
  /** The pooled vector. */
  readonly pre_logits: Identity;
  head: Linear | Identity;

  constructor(name: string, o: AsMlpOptions, config: Preprocessing) {
    super(config);
    this.name = name;
    const dims = o.depths.map((_, i) => o.embedDim * 2 ** i);
    const dim = dims.at(-1) ?? 0;
    const patch = sizePair(o.patchSize);
    this.numFeatures = dim;
    this.featureLevels = dims.map((channels, i) => ({
      path: `layers.${i}.blocks`,
      channels,
      stride: patch[0] * 2 ** i,
    }));
    this.input = identitySite('input', o.inChans, 'map');
    this.patch_embed = new MapPatchEmbed(o.inChans, o.embedDim, patch, o.patchNorm);
    this.pos_drop = new Dropout(o.dropRate);
    this.layers = new Sequential(...buildStages(o, dims));
    this.norm = imageNorm(dim, 'norm');
    this.features = identitySite('features', dim, 'map');
    this.pre_logits = identitySite('pre_logits', dim, 'vector');
    this.head = classifierSite(dim, o.numClasses);
  }

  forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    const parts = [...this.layers, this.norm, this.features];
    return runChain(parts, this.embed(x, ctx), ctx);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    return this.head.run(this.pre_logits.run(poolMap(features, 'avg'), ctx), ctx);
  }

  /** The maps after the blocks of each stage, before they are halved. */
  forwardIntermediates(x: Tensor, ctx: Context = new Context()): Tensor[] {
    let y = this.embed(x, ctx);
    return ([...this.layers] as AsMlpStage[]).map(({ blocks, downsample }) => {
      const map = blocks.run(y, ctx);
      y = downsample ? downsample.run(map, ctx) : map;
      return map;
    });
  }

  protected override get tail(): readonly string[] {
    return ['norm', 'head'];
  }

  resetClassifier(numClasses: number): void {
    this.head = this.like(classifierSite(this.numFeatures, numClasses));
  }

  private embed(x: Tensor, ctx: Context): Tensor {
    const map = this.patch_embed.run(this.input.run(x, ctx), ctx);
    return this.pos_drop.run(map.contiguous({ memoryFormat: 'channels_last' }), ctx);
  }
}

function buildStages(o: AsMlpOptions, dims: readonly number[]): AsMlpStage[] {
  const total = o.depths.reduce((sum, n) => sum + n, 0);
  let depth = 0;
  return o.depths.map((count, stage) => {
    const dim = dims[stage] ?? 0;
    const blocks = Array.from(
      { length: count },
      () =>
        new AsMlpBlock({
          dim,
          shiftSize: o.shiftSize,
          hidden: Math.floor(dim * o.mlpRatio),
          bias: o.asBias,
          drop: o.dropRate,
          dropPath: dropPathRateAt(o.dropPathRate, depth, total),
          stage,
          depth: depth++,
        }),
    );
    return new AsMlpStage(dim, stage, new BlockList(...blocks), stage === o.depths.length - 1);
  });
}

const variants = {
  asmlp_tiny_patch4_shift5_224: { embedDim: 96, depths: [2, 2, 6, 2] },
  asmlp_small_patch4_shift5_224: { embedDim: 96, depths: [2, 2, 18, 2] },
  asmlp_base_patch4_shift5_224: { embedDim: 128, depths: [2, 2, 18, 2] },
} satisfies Record<string, z.input<typeof options>>;

export const asMlp: Family<typeof options> = {
  id: 'as_mlp',
  checkpoints: { source: 'svip-lab/AS-MLP', license: 'MIT' },
  paper: 'Lian et al., AS-MLP: An Axial Shifted MLP Architecture for Vision, ICLR 2022, arXiv 2107.08391',
  options,
  variants,
  create: (name, o) => new AsMlp(name, o, preprocessing(o, { interpolation: 'bicubic', cropPct: 0.9 })),
};
