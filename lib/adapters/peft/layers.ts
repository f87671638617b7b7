/** Factors of LoRA and LoKr as peft holds them, to and from our forms. */
import type { LayerPiece } from '../../models/index.js';
import { Conv2d, Linear, type Module } from '../../nn/index.js';
import { aten, noGrad, type Tensor, zeros } from '../../tensor/index.js';
import type { Graft } from '../core/index.js';
import { LokrConv, LokrLinear } from '../krona_forms.js';
import { LoraConv, LoraLinear } from '../lora.js';

/** The tensors of one layer by their names in peft, such as `lora_A.weight`. */
export interface PeftLayer {
  readonly rank: number;
  /** Factor of the increment. */
  readonly scale: number;
  readonly tensors: ReadonlyMap<string, Tensor>;
}

/** Outputs of the layer that a graft sits at. */
function rowsOf({ site: { module } }: Graft): number {
  return module instanceof Linear ? module.outFeatures : module instanceof Conv2d ? module.outChannels : 0;
}

const fail = (path: string, message: string): never => {
  throw new RangeError(`${path}: ${message}`);
};

/** First and last row of the piece that a graft changes, or null when it changes none. */
function overlap(graft: Graft, piece: LayerPiece): readonly [start: number, end: number] | null {
  const { start, length } = graft.site.slice ?? { start: 0, length: rowsOf(graft) };
  const from = Math.max(start, piece.start);
  const to = Math.min(start + length, piece.start + piece.length);
  return from < to ? [from, to] : null;
}

/** A grouped first factor as one over all channels: peft's has no groups. */
function ungrouped(down: Tensor, groups: number, inChannels: number): Tensor {
  if (groups === 1) return down;
  const [rows = 0, inner = 0, ...kernel] = down.shape;
  const full = zeros([rows, inChannels, ...kernel], { dtype: down.dtype, device: down.device });
  for (let g = 0; g < groups; g++) {
    const part = down.narrow(0, (g * rows) / groups, rows / groups);
    full
      .narrow(0, (g * rows) / groups, rows / groups)
      .narrow(1, g * inner, inner)
      .copy_(part);
  }
  return full;
}

/** One pair of factors for a layer of the other library, of all grafts that change it; null when none does. */
export function loraLayer(grafts: readonly Graft[], piece: LayerPiece): PeftLayer | null {
  const downs: Tensor[] = [];
  const ups: { readonly at: number; readonly up: Tensor }[] = [];
  let factor: number | null = null;
  for (const graft of grafts) {
    const { form, composition, site, strength } = graft;
    if (!(form instanceof LoraLinear || form instanceof LoraConv) || composition.kind !== 'delta') continue;
    const range = overlap(graft, piece);
    if (!range) continue;
    const isConv = form instanceof LoraConv;
    const layer = site.module;
    if (layer instanceof Conv2d && layer.dilation.some((step) => step !== 1))
      fail(site.path, "is a dilated convolution, whose dilation peft's LoRA leaves out; leave the layer out");
    const scale = composition.scale * strength;
    factor ??= scale;
    const down = isConv ? form.down.weight : form.down.effectiveWeight();
    const up = (isConv ? form.up.weight : form.up.effectiveWeight()).mul(factor === 0 ? 1 : scale / factor);
    const first = range[0] - (site.slice?.start ?? 0);
    downs.push(isConv && layer instanceof Conv2d ? ungrouped(down, layer.groups, layer.inChannels) : down);
    ups.push({ at: range[0] - piece.start, up: up.narrow(0, first, range[1] - range[0]) });
  }
  if (factor === null) return null;
  const rank = downs.reduce((sum, down) => sum + (down.shape[0] ?? 0), 0);
  const a = downs.length === 1 ? (downs[0] as Tensor) : aten.cat(downs, 0);
  const only = ups.length === 1 ? ups[0]?.up : undefined;
  const b = only?.shape[0] === piece.length ? only : spread(ups, piece.length);
  return {
    rank,
    scale: factor,
    tensors: new Map([
      ['lora_A.weight', a.detach().contiguous()],
      ['lora_B.weight', b.detach().contiguous()],
    ]),
  };
}

/** Second factors of some rows each, side by side in one of all rows. */
function spread(ups: readonly { readonly at: number; readonly up: Tensor }[], rows: number): Tensor {
  const parts = ups.map(({ at, up }) => {
    const full = zeros([rows, ...up.shape.slice(1)], { dtype: up.dtype, device: up.device });
    full.narrow(0, at, up.shape[0] ?? 0).copy_(up);
    return full;
  });
  return parts.length === 1 ? (parts[0] as Tensor) : aten.cat(parts, 1);
}

/** LoKr's factors for a layer of the other library; null when no graft changes it. */
export function lokrLayer(grafts: readonly Graft[], piece: LayerPiece): PeftLayer | null {
  const touching = grafts.filter((graft) => overlap(graft, piece) !== null);
  const [graft, second] = touching;
  if (!graft) return null;
  const { form, composition, site, strength } = graft;
  if (!(form instanceof LokrLinear || form instanceof LokrConv) || composition.kind !== 'delta')
    return fail(site.path, 'holds no factors of LoKr');
  const { start, length } = site.slice ?? { start: 0, length: rowsOf(graft) };
  if (second || start !== piece.start || length !== piece.length) {
    return fail(
      site.path,
      `peft's LoKr is one Kronecker product for the whole layer ${piece.foreign}, and this adapts a part of it; ` +
        "train with at: { name: 'qkv' }, use lora, or save the adapter in a folder of torchgraft's own",
    );
  }
  if (site.module instanceof Conv2d && site.module.groups > 1)
    return fail(site.path, 'is a convolution in groups, which peft has no LoKr for; leave the layer out');
  const first = form.w1 ? 'w1' : 'w1_a';
  const tensors = form
    .namedParameters()
    .map(([name, tensor]): [string, Tensor] => [
      `lokr_${name}`,
      (name === first ? tensor.mul(strength) : tensor).detach().contiguous(),
    ]);
  return { rank: Number.NaN, scale: composition.scale, tensors: new Map(tensors) };
}

/** The first factor of a convolution in groups, from peft's, which must not mix the groups. */
function grouped(full: Tensor, groups: number, path: string): Tensor {
  if (groups === 1) return full;
  const [rank = 0, channels = 0] = full.shape;
  const [rows, inner] = [rank / groups, channels / groups];
  const parts = Array.from({ length: groups }, (_, g) => full.narrow(0, g * rows, rows));
  const own = aten.cat(
    parts.map((part, g) => part.narrow(1, g * inner, inner)),
    0,
  );
  if (!ungrouped(own, groups, channels).equal(full)) {
    fail(
      path,
      `is a convolution of ${groups} groups, and peft's factor mixes them, which no change of the layer's weight can do; exclude the layer from the adapter`,
    );
  }
  return own;
}

/** Rank of the form that these tensors fit: that of one group, for convolutions in groups. */
export function formRank(module: Module, rank: number): number {
  return module instanceof Conv2d ? rank / module.groups : rank;
}

/** Gives a form peft's tensors. @throws RangeError that names what is missing or has another shape */
export function fillForm(graft: Graft, tensors: ReadonlyMap<string, Tensor>, path: string): void {
  const { form, site } = graft;
  const isLora = form instanceof LoraLinear || form instanceof LoraConv;
  const groups = site.module instanceof Conv2d ? site.module.groups : 1;
  const expected = isLora ? ['lora_A.weight', 'lora_B.weight'] : form.namedParameters().map(([name]) => `lokr_${name}`);
  const unexpected = [...tensors.keys()].filter((name) => !expected.includes(name));
  if (unexpected.length > 0) fail(path, `holds ${unexpected.join(', ')}, where ${expected.join(', ')} are expected`);
  noGrad(() => {
    for (const [name, parameter] of form.namedParameters()) {
      const foreign = isLora ? (name.startsWith('down') ? 'lora_A.weight' : 'lora_B.weight') : `lokr_${name}`;
      const found = tensors.get(foreign);
      if (!found) return fail(path, `${foreign} is missing`);
      const value = isLora && foreign === 'lora_A.weight' ? grouped(found, groups, path) : found;
      if (value.shape.join() !== parameter.shape.join())
        fail(path, `${foreign} is [${found.shape.join(', ')}], expected [${parameter.shape.join(', ')}]`);
      parameter.copy_(value);
    }
  });
}
