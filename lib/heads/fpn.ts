/** Feature pyramid network in MMSegmentation's names. Lin et al., CVPR 2017, arXiv 1612.03144. */
import { Context, everySecond, init, Module, ModuleList, requireLevels, topDown } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { ConvModule } from './conv_module.js';

/** What stands between a backbone and its heads: feature levels to feature levels. `HorFpn` is one too. */
export interface Neck extends Module {
  /** From the maps of a backbone to those of the neck, finest first. */
  fuse(maps: readonly Tensor[], ctx: Context): Tensor[];
}

/** What a feature pyramid can be told. */
export interface FpnOptions {
  /** Channels of each level that enters, finest first. */
  readonly inChannels: readonly number[];
  /** Channels of each level that leaves. Default 256. */
  readonly outChannels?: number;
  /** Levels that leave. Default: as many as are used. */
  readonly numOuts?: number;
  /** The first level that is used. Default 0. */
  readonly startLevel?: number;
  /**
   * How levels beyond those used are made: every second pixel of the one before (`pool`, the default), or convolutions
   * of stride 2 that start from the coarsest input, sum or output.
   */
  readonly extra?: 'pool' | 'on_input' | 'on_lateral' | 'on_output';
}

/**
 * 1x1 convolutions, the top-down sum, a 3x3 convolution each; all with a bias and without a norm. Starts
 * Xavier-uniform, biases 0.
 */
export class Fpn extends Module implements Neck {
  readonly lateral_convs: ModuleList<ConvModule>;
  /** Those of the levels that enter, then those of the extra levels. */
  readonly fpn_convs: ModuleList<ConvModule>;
  readonly #levels: number;
  readonly #start: number;
  readonly #numOuts: number;
  readonly #extra: NonNullable<FpnOptions['extra']>;

  /** @throws RangeError when no level is used, or fewer shall leave than are used */
  constructor({ inChannels, outChannels = 256, numOuts, startLevel = 0, extra = 'pool' }: FpnOptions) {
    super();
    const used = inChannels.slice(startLevel);
    this.#levels = inChannels.length;
    this.#start = startLevel;
    this.#numOuts = numOuts ?? used.length;
    this.#extra = extra;
    if (used.length === 0 || this.#numOuts < used.length) {
      throw new RangeError(
        `Fpn: ${used.length} levels are used and ${this.#numOuts} leave; at least one must be used, and as many leave`,
      );
    }
    const conv = (from: number, kernelSize: number, stride = 1): ConvModule =>
      new ConvModule(from, outChannels, { kernelSize, stride, norm: null, act: 'none' });
    this.lateral_convs = new ModuleList(used.map((channels) => conv(channels, 1)));
    this.fpn_convs = new ModuleList(used.map(() => conv(outChannels, 3)));
    for (let i = used.length; extra !== 'pool' && i < this.#numOuts; i++) {
      const fromInput = extra === 'on_input' && i === used.length;
      this.fpn_convs.push(conv(fromInput ? (used.at(-1) ?? 0) : outChannels, 3, 2));
    }
    for (const { conv: c } of [...this.lateral_convs, ...this.fpn_convs]) {
      init.xavierUniform_(c.weight);
      if (c.bias) init.zeros_(c.bias);
    }
  }

  /**
   * @param maps one [B, C_i, H_i, W_i] for each of `inChannels`, finest first
   * @returns `numOuts` maps of `outChannels`
   * @throws RangeError for another number of maps
   */
  fuse(maps: readonly Tensor[], ctx: Context = new Context()): Tensor[] {
    requireLevels(maps, this.#levels, 'Fpn');
    const used = maps.slice(this.#start);
    const sums = topDown(used.map((map, i) => this.lateral_convs.at(i).run(map, ctx)));
    const outs = sums.map((map, i) => this.fpn_convs.at(i).run(map, ctx));
    const sources = { on_input: used, on_lateral: sums, on_output: outs };
    while (outs.length < this.#numOuts) {
      const last = outs.at(-1) as Tensor;
      if (this.#extra === 'pool') {
        outs.push(everySecond(last));
        continue;
      }
      const source = outs.length === used.length ? (sources[this.#extra].at(-1) as Tensor) : last;
      outs.push(this.fpn_convs.at(outs.length).run(source, ctx));
    }
    return outs;
  }

  /** @throws TypeError always: a pyramid has many inputs; call `fuse` */
  forward(): Tensor {
    throw new TypeError('Fpn takes a list of maps: call fuse(maps, ctx)');
  }
}
