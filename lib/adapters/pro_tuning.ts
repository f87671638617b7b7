/**
 * Pro-tuning: convolutional prompt blocks between the stages of a frozen network. Nie et al., IEEE TCSVT 2023, arXiv
 * 2207.14381. The body of the paper was not available when this was written: the block follows the only public
 * re-implementation (jimmylin0979/PAT, commit a7aff3f), so no figure of the paper is claimed.
 */
import { z } from 'zod';
import { type Context, Conv2d, functional, Module, Parameter, Sequential, type Site } from '../nn/index.js';
import { aten, type Tensor, zeros } from '../tensor/index.js';
import { defineMethod, type Rule, sequential } from './core/index.js';
import { overPatches, requirePatches } from './patch_map.js';
import { groupEnds, stagesOf } from './stage_ends.js';

/** s = σ(We ReLU(Wc mean(c))) per channel; gives c s, or s alone. [B, C, H, W] to [B, C, H, W] or [B, C, 1, 1]. */
class ChannelGate extends Module {
  readonly compress: Conv2d;
  readonly excitation: Conv2d;
  readonly #gateOnly: boolean;

  constructor(channels: number, inner: number, gateOnly: boolean) {
    super();
    this.compress = new Conv2d(channels, inner, { kernelSize: 1 });
    this.excitation = new Conv2d(inner, channels, { kernelSize: 1 });
    this.#gateOnly = gateOnly;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const gate = this.excitation.run(this.compress.run(x.mean([2, 3], true), ctx).relu(), ctx).sigmoid();
    return this.#gateOnly ? gate : x.mul(gate);
  }
}

/** Shape of a prompt block. */
export interface PromptBlockOptions {
  /** Groups of the two outer 1x1 convolutions. Default 4. */
  readonly groups?: number;
  /** Odd side of the depth-wise kernel. Default 5. */
  readonly kernel?: number;
  /** The gate's hidden layer has floor(channels / seRatio) channels. Default 16. */
  readonly seRatio?: number;
  /** `multiply` (default): the gate scales the features; `gate_only`: it takes their place, as the public code has it. */
  readonly se?: 'multiply' | 'gate_only';
  /** How features lie at the site: `map`, or tokens. Default `map`. */
  readonly layout?: string;
}

/**
 * beta p(x) with p = 1x1 (grouped), k x k (depth-wise), 1x1, squeeze-excitation, 1x1 (grouped), no nonlinearity but the
 * gate's. Maps [B, C, H, W], or tokens, of which those that are no patches get nothing. `beta` [1] starts at 0.
 */
export class PromptBlock extends Module {
  readonly beta: Parameter;
  readonly prompt_block: Sequential;
  readonly #last: Conv2d;
  readonly #layout: string;

  constructor(channels: number, options: PromptBlockOptions = {}) {
    super();
    const { groups = 4, kernel = 5, seRatio = 16, se = 'multiply', layout = 'map' } = options;
    if (channels % groups !== 0) {
      throw new RangeError(
        `${channels} channels do not divide into ${groups} groups; take groups that divide ${channels}`,
      );
    }
    if (kernel % 2 === 0) throw new RangeError(`a kernel of ${kernel} has no center; take an odd one such as 5`);
    const inner = Math.floor(channels / seRatio);
    if (inner < 1) {
      throw new RangeError(`seRatio ${seRatio} leaves the gate none of ${channels} channels; at most ${channels}`);
    }
    this.beta = new Parameter(zeros([1]));
    this.#last = new Conv2d(channels, channels, { kernelSize: 1, groups });
    this.prompt_block = new Sequential(
      new Conv2d(channels, channels, { kernelSize: 1, groups }),
      new Conv2d(channels, channels, { kernelSize: kernel, padding: (kernel - 1) / 2, groups: channels }),
      new Conv2d(channels, channels, { kernelSize: 1 }),
      new ChannelGate(channels, inner, se === 'gate_only'),
      this.#last,
    );
    this.#layout = layout;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return overPatches(x, ctx, this.#layout, {
      onMap: (map) => this.#prompt(map, ctx),
      onRest: (tokens) => aten.zerosLike(tokens),
    });
  }

  #prompt(x: Tensor, ctx: Context): Tensor {
    const gated = [...this.prompt_block].slice(0, -1).reduce((y, part) => part.run(y, ctx), x);
    // beta goes into the last convolution: the same numbers without a product, and a saved map, of full size.
    const { weight, bias, groups } = this.#last;
    const p = functional.conv2d(gated, weight.mul(this.beta), bias?.mul(this.beta) ?? null, { groups });
    return p.expandAs(x);
  }
}

/** Where a block can be plugged in, by name, in the order of the network. */
type Positions = ReadonlyMap<string, Site>;

/** Stem and stages of a network whose stages differ; merging patches belongs to the stage before. */
function stagedPositions(stages: readonly Site[], sites: readonly Site[]): [string, Site][] {
  const merging = sites.filter(({ roles, block, layout }) => {
    return roles.includes('downsample') && block === null && layout === 'tokens';
  });
  return stages.map((stage, i) => [`stage${i + 1}`, merging[i] ?? stage]);
}

function positionsOf(sites: readonly Site[], count: number): Positions {
  const withRole = (role: string): Site[] => sites.filter(({ roles }) => roles.includes(role));
  const stem = [...withRole('tokens'), ...withRole('stem')].slice(0, 1);
  const stages = stagesOf(sites);
  return new Map([
    ...stem.map((site): [string, Site] => ['stem', site]),
    ...(stages.length > 0
      ? stagedPositions(stages, sites)
      : groupEnds(sites, count, 'pro_tuning').map((end, i): [string, Site] => [`stage${i + 1}`, end])),
  ]);
}

/** One rule per position. @throws RangeError for a position that the network does not have */
function rulesOf(positions: Positions, wanted: readonly string[] | undefined, options: PromptBlockOptions): Rule[] {
  const names = wanted ?? [...positions.keys()].slice(0, -1);
  return names.map((id) => {
    const site = positions.get(id);
    if (!site) {
      throw new RangeError(
        `pro_tuning: there is no position '${id}' here; there are ${[...positions.keys()].join(', ')}`,
      );
    }
    const form = ({ out, layout }: Site): Module => new PromptBlock(out, { ...options, layout });
    return { id, at: { path: site.path }, compose: sequential(), form };
  });
}

/**
 * Pro-tuning. A prompt block behind the stem and behind each stage but the last: on networks with stages behind each,
 * on Swin behind the patch merging that follows it, on transformers of one width behind every quarter of the blocks.
 * Starts as the backbone. 2,298,872 parameters on ResNet-50, 3,926,212 on ViT-B/16 (counted on this block).
 */
export const proTuning = defineMethod({
  id: 'pro_tuning',
  summary: 'convolutional prompt blocks between the stages',
  paper: 'Nie et al., Pro-tuning: Unified Prompt Tuning for Vision Tasks, IEEE TCSVT 2023, arXiv 2207.14381',
  options: z.strictObject({
    /** Where, of `stem`, `stage1`, ... Default: all but the last stage. */
    positions: z
      .array(z.string().regex(/^(stem|stage[1-9]\d*)$/, 'must be stem, stage1, stage2, ...'))
      .min(1)
      .refine((names) => new Set(names).size === names.length, 'must name each position once')
      .optional(),
    groups: z.int().positive().default(4),
    kernel: z.int().positive().default(5),
    seRatio: z.number().min(1).default(16),
    se: z.enum(['multiply', 'gate_only']).default('multiply'),
    /** Into how many stages the blocks of a transformer of one width are cut. */
    stages: z.int().positive().default(4),
  }),
  rules: ({ positions, stages, ...block }, sites) => {
    requirePatches('pro_tuning', sites);
    return rulesOf(positionsOf(sites, stages), positions, block);
  },
  backboneMode: 'eval',
  officialName: ({ rule, leaf }) => `prompts.${rule}.${leaf}`,
});
