/** What builders of adapted models share: an adapter's tensors under the names of official checkpoints. */
import type { Adapter, Graft, OfficialPart } from '../../../lib/adapters/index.js';
import type { KeyMap } from '../../../lib/checkpoint/index.js';
import { Backbone, createCustomModel, type Host } from '../../../lib/models/index.js';
import { Context, modulePath, trainingMode } from '../../../lib/nn/index.js';
import { countMacs, empty, noGrad, scope, type Tensor } from '../../../lib/tensor/index.js';
import type { Config } from '../builder.js';
import { type Built, entriesOf, entriesThrough, type Entry, soleInput } from '../builder.js';

/** How a model's and its adapter's tensors are called in an official checkpoint; null: the format has no such tensor. */
export interface Naming {
  readonly backbone?: (name: string) => string | null;
  /** From the format's names to the backbone's, for formats that also hold tensors in other shapes; instead of `backbone`. */
  readonly keyMap?: KeyMap;
  /** From the name that the method gives a tensor in official checkpoints. Default: that name. */
  readonly graft?: (official: string) => string | null;
}

/** The official name of a tensor of an adapter's graft or shared part. */
function officialName(adapter: Adapter, part: OfficialPart, naming: Naming): string | null {
  const name = adapter.method.officialName?.(part, adapter.options);
  if (name === undefined) throw new Error(`${adapter.method.id} states no official names`);
  return name === null || !naming.graft ? name : naming.graft(name);
}

/** The tensors of one graft by their official names. */
export function graftEntries(adapter: Adapter, { site, rule, form, scale }: Graft, naming: Naming): [string, Entry][] {
  const own: [string, Tensor][] = [...(scale ? [['scale', scale] as [string, Tensor]] : []), ...form.namedState()];
  const path = modulePath(site);
  return own.flatMap(([leaf, tensor]): [string, Entry][] => {
    const name = officialName(adapter, { path, site, rule, leaf }, naming);
    return name === null ? [] : [[name, { tensor }]];
  });
}

/** The tensors of the parts that grafts share. */
export function sharedEntries(adapter: Adapter, naming: Naming): [string, Entry][] {
  return [...adapter.shared].flatMap(([rule, part]) =>
    part.namedState().flatMap(([leaf, tensor]): [string, Entry][] => {
      const name = officialName(adapter, { path: '', rule, leaf }, naming);
      return name === null ? [] : [[name, { tensor }]];
    }),
  );
}

/** The tensors of the head that an adapter brings, none where it brings none, by the names that `name` gives their own. */
export function headEntries({ headModule }: Adapter, name: (leaf: string) => string): [string, Entry][] {
  return (headModule?.namedState() ?? []).map(([leaf, tensor]) => [name(leaf), { tensor }]);
}

/** The backbone's tensors by their official names. */
function backboneEntries(model: Backbone, { backbone, keyMap }: Naming): Map<string, Entry> {
  return keyMap ? entriesThrough(model, keyMap) : entriesOf(model, backbone);
}

/** A backbone with an adapter in it. `run` defaults to the whole model on the case's one input, with the output `y`. */
export function adapted(model: Backbone, adapter: Adapter, naming: Naming = {}, run?: Built['run']): Built {
  return {
    module: model,
    train: () => {
      trainingMode(model, { bnStats: 'update', backbone: adapter.backboneMode });
    },
    state: new Map([
      ...backboneEntries(model, naming),
      ...adapter.grafts.filter(({ rule }) => rule !== 'head').flatMap((g) => graftEntries(adapter, g, naming)),
      ...sharedEntries(adapter, naming),
    ]),
    run: run ?? ((inputs) => ({ y: model.run(soleInput(inputs)) })),
    merge: () => {
      adapter.merge({ partial: true });
      const left = adapter.grafts.filter(({ merged }) => !merged).flatMap((g) => graftEntries(adapter, g, naming));
      const state = new Map(
        [...backboneEntries(model, naming), ...left].map(([name, { tensor, view }]) => [
          name,
          view ? view(tensor) : tensor,
        ]),
      );
      return { state, leftover: left.map(([name]) => name) };
    },
  };
}

/** A vision transformer of one block, for cases that hold a bare block: `blockName` and `runBlock` show only that. */
export function singleBlock(config: Config, keys: { dim: string; eps: string }): Backbone {
  return createCustomModel('vit', {
    imgSize: 1,
    patchSize: 1,
    numClasses: 1,
    depth: 1,
    embedDim: config.get(keys.dim),
    numHeads: config.get('num_heads'),
    mlpRatio: config.get('mlp_ratio', 4),
    qkvBias: config.get('qkv_bias', true),
    normEps: config.get(keys.eps, 1e-6),
    initValues: config.get<number | null>('init_values', null),
  });
}

const BLOCK = 'blocks.0.';

/** A name inside the single block, without its prefix; null for the rest of the model. */
export function blockName(name: string): string | null {
  return name.startsWith(BLOCK) ? name.slice(BLOCK.length) : null;
}

/** Tokens through the single block. */
export const runBlock =
  (model: Backbone): Built['run'] =>
  (inputs) => ({ y: model.getModule('blocks.0').run(soleInput(inputs), new Context()) });

/** Multiply-accumulates of one image of the model's size; the model must be on the meta device. */
export function macsOf(model: Backbone): number {
  const x = empty([1, ...model.config.inputSize], { device: 'meta' });
  const run = (): unknown => (model.isTrunk ? model.forwardIntermediates(x) : model.run(x));
  model.eval();
  return noGrad(() => scope(() => countMacs(run).macs));
}

/** The figures of a counts.json that every adapted model has. */
export function countAdapted(model: Host, adapter: Adapter): Record<string, number> {
  const { total, trainable, head } = adapter.summary();
  return {
    ...(model instanceof Backbone && { macs: macsOf(model) }),
    total_parameters: total,
    trainable_parameters: trainable,
    trainable_without_head: trainable - head,
    plain_backbone_parameters: model.parameters().reduce((sum, parameter) => sum + parameter.numel(), 0),
  };
}
