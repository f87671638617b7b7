/**
 * Prompt-matched segmentation (semantic-aware prompt matcher). Liu et al. 2022, arXiv 2208.10159. There is no public code
 * and the body of the paper could not be read when this was written: the idea is from the abstract, the formulas are a
 * reconstruction, and no figure of the paper is claimed.
 */
import { z } from 'zod';
import { type Context, Conv2d, functional, init, Module, pixelCrossEntropy, type Site } from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import { defineMethod, type Rule, sequential } from './core/index.js';
import { overPatches, requirePatches } from './patch_map.js';
import { groupEnds, stagesOf } from './stage_ends.js';

/** Name of the labels among `ctx.inputs`: integers [B, H, W]. With them a prompt matcher adds its own loss. */
export const SEGMENTATION_LABELS = 'labels';

/** Shape of a prompt matcher. */
export interface PromptMatcherOptions {
  readonly classes: number;
  /** Width inside. */
  readonly width: number;
  /** How often prompts are refined, with the same weights. Default 2. */
  readonly iterations?: number;
  /** How features lie at the site: `map` (default), or tokens. */
  readonly layout?: string;
  /** Name of the interim maps among the auxiliary outputs, before the number of the iteration. Default `map_`. */
  readonly name?: string;
  /** Factor of each iteration's loss. Default 0. */
  readonly lossWeight?: number;
}

/**
 * Prompts P_T for features F, to be added to them: from P_0 = 0,
 * z = reduce(F + P), S = semantic(z), u = GELU(mix(z + embed(softmax S))), P <- P + expand(u). `mix` is depth-wise, 3x3; the
 * others are 1x1. Maps [B, C, H, W], or tokens, of which those that are no patches get nothing. The interim maps S, logits
 * [B, K, H, W], are auxiliary outputs; where the labels are known, their losses go to the context. `expand` starts at 0.
 */
export class PromptMatcher extends Module {
  readonly reduce: Conv2d;
  readonly semantic: Conv2d;
  readonly embed: Conv2d;
  readonly mix: Conv2d;
  readonly expand: Conv2d;
  readonly #iterations: number;
  readonly #layout: string;
  readonly #name: string;
  readonly #lossWeight: number;

  constructor(channels: number, options: PromptMatcherOptions) {
    super();
    const { classes, width, iterations = 2, layout = 'map', name = 'map_', lossWeight = 0 } = options;
    const point = (from: number, to: number, bias = true): Conv2d => new Conv2d(from, to, { kernelSize: 1, bias });
    this.reduce = point(channels, width);
    this.semantic = point(width, classes);
    this.embed = point(classes, width, false);
    this.mix = new Conv2d(width, width, { kernelSize: 3, padding: 1, groups: width });
    this.expand = point(width, channels);
    init.zeros_(this.expand.weight);
    if (this.expand.bias) init.zeros_(this.expand.bias);
    this.#iterations = iterations;
    this.#layout = layout;
    this.#name = name;
    this.#lossWeight = lossWeight;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return overPatches(x, ctx, this.#layout, {
      onMap: (map) => this.#prompts(map, ctx),
      onRest: (tokens) => aten.zerosLike(tokens),
    });
  }

  #prompts(features: Tensor, ctx: Context): Tensor {
    // reduce(F + P) = reduce(F) + W P: the product with F, the larger part, is the same in every iteration.
    const base = this.reduce.run(features, ctx);
    let prompts: Tensor | null = null;
    for (let t = 0; t < this.#iterations; t++) {
      const reduced: Tensor = prompts ? base.add(functional.conv2d(prompts, this.reduce.weight)) : base;
      const map = this.semantic.run(reduced, ctx);
      this.#tell(map, t, ctx);
      const evidence = this.embed.run(functional.softmax(map, 1), ctx);
      const refined = this.expand.run(functional.gelu(this.mix.run(reduced.add(evidence), ctx)), ctx);
      prompts = prompts ? prompts.add(refined) : refined;
    }
    return prompts ?? aten.zerosLike(features);
  }

  #tell(map: Tensor, iteration: number, ctx: Context): void {
    ctx.aux.set(`${this.#name}${iteration}`, map);
    const labels = ctx.inputs[SEGMENTATION_LABELS];
    if (labels && this.#lossWeight > 0) ctx.losses.push(pixelCrossEntropy(map, labels).mul(this.#lossWeight));
  }
}

/** Width inside where none is given: the streams of plain transformers have more channels than most stages. */
const WIDTHS = { staged: 64, plain: 32 };

/**
 * Prompt matchers behind every stage but the last: on networks with stages before what shrinks the map, on transformers
 * of one width behind every quarter of the blocks. Their interim maps are the auxiliary outputs `spm.<position>.<iteration>`;
 * with `labels` among the context's inputs, `lossWeight` times the mean of their losses is added. Starts as the backbone.
 */
export const spm = defineMethod({
  id: 'spm',
  summary: 'prompts between the stages, refined under interim semantic maps, for segmentation',
  paper: 'Liu et al., Prompt-Matched Semantic Segmentation, 2022, arXiv 2208.10159 (reconstructed from the abstract)',
  options: z.strictObject({
    /** Classes of the interim maps. Default: those of ADE20K. */
    classes: z.int().positive().default(150),
    /** Width inside. Default: 64, on transformers of one width 32. */
    width: z.int().positive().optional(),
    iterations: z.int().positive().default(2),
    /** Weight of the mean loss of the interim maps. */
    lossWeight: z.number().nonnegative().default(0.4),
    /** Into how many stages the blocks of a transformer of one width are cut. */
    stages: z.int().min(2).default(4),
  }),
  rules: ({ classes, width, iterations, lossWeight, stages: count }, sites) => {
    requirePatches('spm', sites);
    const stages = stagesOf(sites);
    const isStaged = stages.length > 1;
    const ends = (isStaged ? stages : groupEnds(sites, count, 'spm')).slice(0, -1);
    const inner = width ?? (isStaged ? WIDTHS.staged : WIDTHS.plain);
    return ends.map((end, i): Rule => {
      const own = { classes, width: inner, iterations, lossWeight: lossWeight / (ends.length * iterations) };
      const form = ({ out, layout }: Site): Module => new PromptMatcher(out, { ...own, layout, name: `spm.${i}.` });
      return { id: `spm_${i}`, at: { path: end.path }, compose: sequential(), form };
    });
  },
  backboneMode: 'eval',
  officialName: ({ rule, leaf }) => `${rule.replace('_', '.')}.${leaf}`,
});
