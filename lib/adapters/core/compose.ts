/**
 * How a graft's output is combined with what the backbone computes: the "composition" column of the unified view's
 * table (He et al., ICLR 2022, arXiv 2110.04366, table 1), as data.
 */
import { type Context, Conv2d, Linear, type Module, Parameter, scaleShift, type Site } from '../../nn/index.js';
import { aten, full, ones, type Tensor } from '../../tensor/index.js';

/** Factor of a graft's output: a number, a learned scalar, or one learned factor per channel (both start at 1). */
export type Scale = number | 'learned' | 'learned_per_channel';

/** With f the site, g the form, s the scale; every rule states one of these. */
export type Composition =
  /** y = f(x) + s g(x) */
  | { readonly kind: 'parallel'; readonly scale: Scale }
  /** y = f(x) + s g(f(x)), or y = g(f(x)) without the residual */
  | { readonly kind: 'sequential'; readonly residual: boolean; readonly scale: Scale }
  /** y = f(g(x)) */
  | { readonly kind: 'before' }
  /** W -> W + s D for the weight W of a linear layer or convolution; computed as f(x) + s (D applied to x) */
  | { readonly kind: 'delta'; readonly scale: number }
  /** y = a * f(x) + b per channel */
  | { readonly kind: 'affine' }
  /** y = g(x): the site's own computation is left out */
  | { readonly kind: 'replace' };

/** y = f(x) + s g(x). */
export const parallel = (scale: Scale = 1): Composition => ({ kind: 'parallel', scale });
/** y = f(x) + s g(f(x)); with `residual: false`, y = g(f(x)). */
export const sequential = (options: { residual?: boolean; scale?: Scale } = {}): Composition => ({
  kind: 'sequential',
  residual: options.residual ?? true,
  scale: options.scale ?? 1,
});
/** y = f(g(x)). */
export const before = (): Composition => ({ kind: 'before' });
/** W -> W + s D. */
export const delta = (scale = 1): Composition => ({ kind: 'delta', scale });
/** y = a * f(x) + b. */
export const affine = (): Composition => ({ kind: 'affine' });
/** y = g(x). */
export const replace = (): Composition => ({ kind: 'replace' });

/** A form whose effect is a change of the site's weight. */
export interface DeltaForm extends Module {
  /** The increment D, in the shape of the weight (of the slice's rows, for a slice). */
  delta(): Tensor;
  /** (W + s D) applied to x, where that can be had at once; null where it cannot. `layer` has no other increment yet. */
  applyWith?(layer: Module, x: Tensor, scale: number, ctx: Context): Tensor | null;
  /** base + s (D applied to x), where that can be had in fewer passes than the sum of both; `base` is not used again. */
  addTo?(base: Tensor, x: Tensor, scale: number, ctx: Context): Tensor;
}

/** A form that is a factor and a summand per channel; either may be absent. */
export interface AffineForm extends Module {
  /** a and b of y = a x + b, per channel; null for what it has not. `ctx` is absent when the map is folded into weights. */
  factorAndSummand(ctx?: Context): { factor: Tensor | null; summand: Tensor | null };
}

/** Whether a form states an increment of its layer's weight. */
export function isDeltaForm(form: Module): form is DeltaForm {
  return 'delta' in form && typeof form.delta === 'function';
}

/** Whether a form states a map per channel. */
export function isAffineForm(form: Module): form is AffineForm {
  return 'factorAndSummand' in form && typeof form.factorAndSummand === 'function';
}

/** Dimension of the channels in the features at a site. */
function channelDim(site: Site): number {
  return site.layout === 'map' ? 1 : -1;
}

/** A learned scale's parameter, or null for a fixed one. */
export function scaleParameter(composition: Composition, site: Site): Parameter | null {
  if (composition.kind !== 'parallel' && composition.kind !== 'sequential') return null;
  if (composition.scale === 'learned') return new Parameter(full([1], 1));
  if (composition.scale !== 'learned_per_channel') return null;
  const channels = site.slice?.length ?? site.out;
  return new Parameter(ones(site.layout === 'map' ? [1, channels, 1, 1] : [channels]));
}

/** What the rest of this file needs of a graft. */
export interface Part {
  readonly site: Site;
  readonly composition: Composition;
  readonly form: Module;
  readonly scale: Parameter | null;
  /** Factor of the whole effect, 1 unless adapters are weighted. */
  readonly strength: number;
}

function addScaled(y: Tensor, g: Tensor, scale: Scale, { scale: learned, strength }: Part): Tensor {
  if (learned) return aten.addcmul(y, g, learned, { value: strength });
  const factor = typeof scale === 'number' ? scale * strength : strength;
  const sum = factor === 1 ? aten.add(y, g) : aten.add(y, g, { alpha: factor });
  return laidOutAs(y, sum);
}

/**
 * `sum` in the layout of y. LibTorch forgets that a map of one position is laid out with channels last when it adds, and
 * later kernels round differently then: an increment of zero would change the last bits.
 */
function laidOutAs(y: Tensor, sum: Tensor): Tensor {
  const [batch = 0, channels = 0, height, width] = y.shape;
  if (y.ndim !== 4 || height !== 1 || width !== 1 || channels === 1) return sum;
  if (y.stride(3) !== channels || sum.stride(3) === channels) return sum;
  return sum.reshape([batch, 1, 1, channels]).permute([0, 3, 1, 2]);
}

/** An affine map's factor and summand, drawn toward the identity by a strength below 1 (and beyond it by one above). */
export function affineOf(
  { form, strength }: Pick<Part, 'form' | 'strength'>,
  ctx?: Context,
): ReturnType<AffineForm['factorAndSummand']> {
  const map = (form as AffineForm).factorAndSummand(ctx);
  if (strength === 1) return map;
  const { factor, summand } = map;
  return { factor: factor && factor.sub(1).mul(strength).add(1), summand: summand && summand.mul(strength) };
}

/** Whether a composition's effect can be weighted; what exchanges input or output can only be there or not. */
export function isWeightable(composition: Composition): boolean {
  if (composition.kind === 'sequential') return composition.residual;
  return composition.kind !== 'before' && composition.kind !== 'replace';
}

/** The site's output y (or its slice) with one graft applied; x is the site's input. `before` and `replace` act earlier. */
function combine(part: Part, x: Tensor, y: Tensor, ctx: Context): Tensor {
  const { site, composition, form } = part;
  switch (composition.kind) {
    case 'parallel':
      return addScaled(y, form.run(x, ctx), composition.scale, part);
    case 'sequential':
      return composition.residual ? addScaled(y, form.run(y, ctx), composition.scale, part) : form.run(y, ctx);
    case 'delta':
      if (isDeltaForm(form) && form.addTo) return form.addTo(y, x, composition.scale * part.strength, ctx);
      return addScaled(y, form.run(x, ctx), composition.scale, part);
    case 'affine': {
      const { factor, summand } = affineOf(part, ctx);
      const dim = channelDim(site);
      if (factor && summand) return scaleShift(y, factor, summand, dim);
      const spread = (v: Tensor): Tensor => (dim === 1 ? v.view([-1, ...Array<number>(y.ndim - 2).fill(1)]) : v);
      if (factor) return aten.mul(y, spread(factor));
      return summand ? aten.add(y, spread(summand)) : y;
    }
    case 'before':
    case 'replace':
      return y;
  }
}

/** The layer and its increment in one product, if `part` is an increment of the whole layer and knows how; else null. */
function layerWithDelta(
  module: Module,
  { composition, form, site, strength }: Part,
  x: Tensor,
  ctx: Context,
): Tensor | null {
  if (composition.kind !== 'delta' || site.slice || !isDeltaForm(form)) return null;
  return form.applyWith?.(module, x, composition.scale * strength, ctx) ?? null;
}

/** Runs `module` with `parts`, in their order: inputs first, then the module or its replacement, then outputs. */
export function runWithGrafts(module: Module, parts: readonly Part[], x: Tensor, ctx: Context): Tensor {
  let input = x;
  let replacement: Part | undefined;
  for (const part of parts) {
    if (part.composition.kind === 'before') input = part.form.run(input, ctx);
    if (part.composition.kind === 'replace') replacement = part;
  }
  const first = parts.find((part) => part.composition.kind !== 'before');
  const merged = first && !replacement ? layerWithDelta(module, first, input, ctx) : null;
  const y = merged ?? (replacement ? replacement.form.run(input, ctx) : module.forward(input, ctx));
  return addParts(merged ? parts.filter((part) => part !== first) : parts, input, y, ctx);
}

/** The site's output y with grafts applied in their order; x is the site's input. */
export function addParts(parts: readonly Part[], x: Tensor, y: Tensor, ctx: Context): Tensor {
  let result = y;
  for (let i = 0; i < parts.length;) {
    const part = parts[i] as Part;
    if (!part.site.slice) {
      result = combine(part, x, result, ctx);
      i += 1;
      continue;
    }
    const end = parts.findIndex((other, j) => j > i && !isBeside(part, other, parts.slice(i, j)));
    const together = parts.slice(i, end < 0 ? parts.length : end);
    result = addToSlices(together, x, result, ctx);
    i += together.length;
  }
  return result;
}

/** Whether a graft can be applied in one pass with those before it: on a slice that is one of theirs or meets none. */
function isBeside(first: Part, { site }: Part, before: readonly Part[]): boolean {
  const own = site.slice;
  if (!own || channelDim(site) !== channelDim(first.site)) return false;
  return before.every(({ site: { slice } }) => {
    if (!slice) return false;
    const same = slice.start === own.start && slice.length === own.length;
    return same || slice.start + slice.length <= own.start || own.start + own.length <= slice.start;
  });
}

/** Grafts on slices of y that do not overlap: y is taken apart and joined once. */
function addToSlices(parts: readonly Part[], x: Tensor, y: Tensor, ctx: Context): Tensor {
  const dim = channelDim((parts[0] as Part).site);
  const total = y.shape.at(dim) ?? 0;
  const slices = new Map(parts.map(({ site }) => [site.slice?.start ?? 0, site.slice?.length ?? total]));
  const pieces: Tensor[] = [];
  let at = 0;
  const keepUntil = (start: number): void => {
    if (start > at) pieces.push(y.narrow(dim, at, start - at));
  };
  for (const [start, length] of [...slices].sort(([a], [b]) => a - b)) {
    keepUntil(start);
    const own = parts.filter(({ site }) => site.slice?.start === start);
    pieces.push(own.reduce((z, part) => combine(part, x, z, ctx), y.narrow(dim, start, length)));
    at = start + length;
  }
  keepUntil(total);
  return aten.cat(pieces, dim);
}

/** Why a composition cannot stand at a site, or null when it can. */
export function misfit(composition: Composition, form: Module, site: Site): string | null {
  const name = site.module.constructor.name;
  if (composition.kind === 'delta') {
    if (!isDeltaForm(form)) return `${form.constructor.name} states no weight increment`;
    if (!(site.module instanceof Linear || site.module instanceof Conv2d)) {
      return `a weight increment needs a linear layer or a convolution, and this is a ${name}`;
    }
  }
  if (composition.kind === 'affine' && !isAffineForm(form)) return `${form.constructor.name} is not an affine map`;
  if (composition.kind === 'replace' && site.slice)
    return 'a slice cannot be replaced by itself; choose the whole layer';
  if (composition.kind === 'before' && site.slice)
    return 'all slices of a layer share its input; choose the whole layer';
  return null;
}
