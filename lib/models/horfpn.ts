/**
 * HorFPN: a feature pyramid network whose 3x3 convolutions are recursive gated convolutions, and the gated fusion of
 * UPerNet, as released (raoyongming/HorNet, commit ac9e210, `gn_fpn.py`, `gn_module.py`, MIT). Rao et al., NeurIPS 2022,
 * arXiv 2207.14284, section 4.2.
 */
import {
  type BatchNorm2d,
  type Context,
  type Conv2d,
  everySecond,
  Module,
  ModuleList,
  requireLevels,
  site,
  topDown,
} from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { batchNormSite, convSite, type NormOptions } from './blocks.js';
import { type GatedFilter, GnConv } from './hornet_blocks.js';

/** What a recursive gated convolution in a pyramid can be told. */
export interface GnConvModuleOptions {
  /** Default 2. */
  readonly order?: number;
  /** Default 7. */
  readonly filter?: GatedFilter;
  /** Channels inside per output channel. Default 1. */
  readonly dimRatio?: number;
  /** Whether a 1x1 convolution brings the inner channels to the output's. Default true. */
  readonly projOut?: boolean;
  /** The BatchNorm that follows; null for none. Default null. */
  readonly norm?: NormOptions | null;
  /** Default `none`. */
  readonly act?: 'relu' | 'none';
}

/** What a gated convolution can be told where its surroundings say whether a norm follows. */
export type GatedOptions = Omit<GnConvModuleOptions, 'norm' | 'act'>;

/** A gated convolution [, BatchNorm][, ReLU]: [B, in, H, W] -> [B, out, H, W]. */
export class GnConvModule extends GnConv {
  readonly bn: BatchNorm2d | null;
  readonly #act: 'relu' | 'none';

  constructor(inChannels: number, outChannels: number, o: GnConvModuleOptions = {}) {
    const { order = 2, filter = 7, dimRatio = 1, projOut = true, norm = null, act = 'none' } = o;
    super({ inChannels, dim: outChannels * dimRatio, outChannels: projOut ? outChannels : null, order, filter });
    this.bn = norm && batchNormSite(this.outChannels, norm);
    this.#act = act;
  }

  /** x [B, C, H, W] to the same shape. */
  override forward(x: Tensor, ctx: Context): Tensor {
    const y = super.forward(x, ctx);
    const normed = this.bn ? this.bn.run(y, ctx) : y;
    return this.#act === 'relu' ? normed.relu() : normed;
  }
}

/** A 1x1 convolution in the name of its files. */
class Lateral extends Module {
  readonly conv: Conv2d;

  constructor(inChannels: number, outChannels: number) {
    super();
    this.conv = convSite(inChannels, outChannels, { kernelSize: 1, bias: true });
  }

  /** x [B, C, H, W] to the same shape. */
  forward(x: Tensor, ctx: Context): Tensor {
    return this.conv.run(x, ctx);
  }
}

/** What a HorFPN can be told. */
export interface HorFpnOptions {
  /** Channels of each level that enters, finest first. */
  readonly inChannels: readonly number[];
  /** Channels of each level that leaves. Default 256. */
  readonly outChannels?: number;
  /** Levels that leave; those beyond the ones that enter are every second pixel of the one before. Default: as many as enter. */
  readonly numOuts?: number;
  readonly gated?: GatedOptions;
}

/** Levels to levels: 1x1 convolutions, each level plus the resized coarser one, a gated convolution each. */
export class HorFpn extends Module {
  readonly lateral_convs: ModuleList<Lateral>;
  readonly fpn_convs: ModuleList<GnConvModule>;
  readonly outChannels: number;
  /** Names of the levels that leave: `0`, `1`, ..., then `pool`, `pool2`, ... */
  readonly levelNames: readonly string[];

  /** @throws RangeError when fewer levels shall leave than enter */
  constructor({ inChannels, outChannels = 256, numOuts = inChannels.length, gated = {} }: HorFpnOptions) {
    super();
    if (inChannels.length === 0 || numOuts < inChannels.length) {
      throw new RangeError(
        `HorFpn: ${inChannels.length} levels enter and ${numOuts} leave; at least one must enter, and as many leave`,
      );
    }
    this.lateral_convs = new ModuleList(inChannels.map((channels) => new Lateral(channels, outChannels)));
    this.fpn_convs = new ModuleList(inChannels.map(() => new GnConvModule(outChannels, outChannels, gated)));
    this.outChannels = outChannels;
    this.levelNames = Array.from({ length: numOuts }, (_, i) => {
      const pooled = i - inChannels.length + 1;
      return pooled < 1 ? String(i) : pooled === 1 ? 'pool' : `pool${pooled}`;
    });
    site(this, { role: 'neck', in: inChannels.at(-1) ?? 0, out: outChannels, layout: 'map' });
  }

  /**
   * @param maps one [B, C_i, H_i, W_i] for each of `inChannels`, finest first
   * @returns one map of `outChannels` for each of `levelNames`
   * @throws RangeError for another number of maps
   */
  fuse(maps: readonly Tensor[], ctx: Context): Tensor[] {
    requireLevels(maps, this.lateral_convs.length, 'HorFpn');
    const sums = topDown(maps.map((map, i) => this.lateral_convs.at(i).run(map, ctx)));
    const outs = sums.map((map, i) => this.fpn_convs.at(i).run(map, ctx));
    while (outs.length < this.levelNames.length) outs.push(everySecond(outs.at(-1) as Tensor));
    return outs;
  }

  /** @throws TypeError always: a pyramid has many inputs; call `fuse` */
  forward(): Tensor {
    throw new TypeError('HorFpn takes a list of maps: call fuse(maps, ctx)');
  }
}
