/** Kronecker adaptation and the baselines of its repository on CLIP's image tower, and training in random subspaces. */
import { type Adapter, graft, type Graft, type HeadOptions, KroneckerDelta } from '../../../lib/adapters/index.js';
import { type Backbone, createClip, createCustomModel, openaiVisionTransformer } from '../../../lib/models/index.js';
import { Context, Fastfood, Linear, Parameter, trainingMode } from '../../../lib/nn/index.js';
import { aten, empty, type Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, entriesThrough, type Entry, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { activationNamed } from './activations.js';
import { graftEntries, headEntries, macsOf, sharedEntries } from './adapted.js';

const VISUAL = 'backbone.visual.';
const BLOCK = 'transformer.resblocks.0.';

interface Choice {
  readonly id: string;
  readonly options: Record<string, unknown>;
}

function kronecker(config: Config): Choice {
  const isOfficial = config.get<string>('variant') === 'official';
  config
    .expect('variant', 'official', 'paper')
    .expect('layout', isOfficial ? 'official_reshape' : 'aligned')
    .expect('v_factors', isOfficial ? 'q' : 'own')
    .expect('delta_after_query_scaling', isOfficial);
  const options = {
    variant: config.get('variant'),
    phmDim: config.get('phm_dim', 32),
    rank: config.get('phm_rank', 1),
    rule: config.get('factorized_rule', true) ? 'factored' : 'full',
    scale: config.get('scale', 160),
    bias: config.get('bias_b', isOfficial),
  };
  return { id: 'kadaptation', options };
}

function lora(config: Config): Choice {
  const rank = config.get('rank', 4);
  const alpha = config.get('alpha', 128);
  config
    .expect('variant', 'lora')
    .expect('layout', 'official_reshape')
    .expect('delta_after_query_scaling', true)
    .expect('scale', alpha / rank);
  return { id: 'pevit_lora', options: { rank, alpha } };
}

function activationOf(config: Config, fallback: string): string {
  return activationNamed(config.get('activation_adapter', fallback));
}

function compacter(config: Config): Choice {
  config.expect('variant', 'compacter').expect('factorized_rule', false).expect('layer_norm_before', true);
  const options = {
    hidden: config.get('bottleneck', 64),
    phmDim: config.get('phm_dim', 4),
    rank: config.get('phm_rank', 1),
    trainRule: config.get('phm_rule_trainable', false),
    activation: activationOf(config, 'gelu_new'),
  };
  return { id: 'compacter', options };
}

/** The repository's adapter among the designs: behind the MLP, its input normed, with the start of BERT's. */
function bottleneck(config: Config): Choice {
  config.expect('variant', 'adapter').expect('residual', 'mlp output');
  const mlp = {
    insertion: 'sequential',
    norm: config.get('layer_norm_before', true) ? 'in' : 'none',
    start: 'bert',
    activation: activationOf(config, 'relu'),
  };
  return { id: 'adapter', options: { design: 'pfeiffer', width: config.get('bottleneck', 64), mlp } };
}

const plainMethod =
  (id: string) =>
  (config: Config): Choice => {
    config.ignore('variant');
    return { id, options: {} };
  };

const CHOICES: Readonly<Record<string, (config: Config) => Choice>> = {
  kadaptation: kronecker,
  official: kronecker,
  paper: kronecker,
  lora,
  compacter,
  adapter: bottleneck,
  'linear probe': plainMethod('linear_probe'),
  linear_probe: plainMethod('linear_probe'),
  finetune: plainMethod('full'),
  'finetune (visual tower)': plainMethod('full'),
};

function choiceOf(name: string, config: Config): Choice {
  const choice = Object.hasOwn(CHOICES, name) ? CHOICES[name] : undefined;
  if (!choice) throw new UnknownCase(`no builder knows the method '${name}' of kadaptation`);
  return choice(config);
}

// ---- names ----------------------------------------------------------------------------------------------------------

const ADAPTER_PARTS: Readonly<Record<string, string>> = {
  norm: 'adapter_norm_before',
  down: 'adapter_down.1',
  up: 'adapter_up',
};

/** The tensors of one graft by PEViT's names; those of the general adapter method are called otherwise there. */
function entriesOfGraft(adapter: Adapter, part: Graft): [string, Entry][] {
  if (adapter.method.id !== 'adapter') return graftEntries(adapter, part, {});
  const block = (part.site.block ?? '').replace('blocks.', `${VISUAL}transformer.resblocks.`);
  return part.form.namedState().map(([leaf, tensor]) => {
    const [layer = '', ...rest] = leaf.split('.');
    return [[block, 'adapter', ADAPTER_PARTS[layer] ?? layer, ...rest].join('.'), { tensor }];
  });
}

/** The names under which the files hold a tensor once more. */
function repeats(name: string, blocks: number): string[] {
  const rule = /^backbone\.visual\.transformer\.(phm_rule.*)$/.exec(name)?.[1];
  const each = (...inside: string[]): string[] =>
    Array.from({ length: blocks }, (_, i) =>
      inside.map((path) => `${VISUAL}transformer.resblocks.${i}.${path}`),
    ).flat();
  if (rule === 'phm_rule') return each('compacter.adapter_down.1.phm_rule', 'compacter.adapter_up.phm_rule');
  if (rule !== undefined) return each(`attn.${rule}`);
  return name.includes('.adapter_norm_before.') ? [name.replace('.adapter_norm_before.', '.adapter_down.0.')] : [];
}

/** The adapter's tensors but for its head. */
function entriesOfAdapter(adapter: Adapter, blocks: number): Map<string, Entry> {
  const own = [
    ...adapter.grafts.filter(({ rule }) => rule !== 'head').flatMap((part) => entriesOfGraft(adapter, part)),
    ...sharedEntries(adapter, {}),
  ];
  // A second name is that of an alias, which is nobody's parameter.
  const again = own.flatMap(([name, { tensor }]) =>
    repeats(name, blocks).map((other): [string, Entry] => [other, { tensor: tensor.detach() }]),
  );
  return new Map([...own, ...again]);
}

// ---- whole classifiers ----------------------------------------------------------------------------------------------

function towerOf(config: Config): Backbone {
  const isMerged = config.get('merge_proj', false) || config.get('merge_encoder_and_head_proj', false);
  const projDim = config.get<number | null>('output_dim', null);
  return createCustomModel('clip_vit', {
    imgSize: config.get('input_resolution'),
    patchSize: config.get('patch_size'),
    embedDim: config.get('width'),
    depth: config.get('layers'),
    numHeads: config.get('heads'),
    projDim: isMerged ? null : projDim,
    activation: activationNamed(config.get('activation', 'quick_gelu')),
  });
}

function headOf(config: Config): HeadOptions {
  return {
    classes: config.get('num_classes'),
    norm: config.get('channel_bn', true) ? 'batch' : 'none',
    normalize: config.get('normalize_visual_feature', false),
  };
}

function classifier(config: Config): Built {
  const model = towerOf(config);
  const head = headOf(config);
  const { id, options } = choiceOf(config.get(config.has('method') ? 'method' : 'variant'), config);
  config.done();
  const adapter = graft(model, id, options, { head });
  const tower = [...entriesThrough(model, openaiVisionTransformer)];
  return {
    module: model,
    train: () => {
      trainingMode(model, { bnStats: 'update', backbone: adapter.backboneMode });
    },
    state: new Map<string, Entry>([
      ...tower.map(([name, entry]): [string, Entry] => [VISUAL + name, entry]),
      ...entriesOfAdapter(adapter, model.featureLevels.length),
      ...headEntries(adapter, (leaf) => leaf.replace('norm.', 'channel_bn.').replace('linear.', 'layers.0.')),
    ]),
    run: (inputs) => ({ y: model.run(soleInput(inputs)) }),
  };
}

// ---- one block ------------------------------------------------------------------------------------------------------

/** A CLIP tower of one block, of which only that is looked at. */
function oneBlock(config: Config, width: number, heads: number): Backbone {
  const activation = activationNamed(config.get('activation', 'quick_gelu'));
  return createCustomModel('clip_vit', {
    ...{ imgSize: 1, patchSize: 1, depth: 1, projDim: null, activation },
    ...{ embedDim: width, numHeads: heads, mlpRatio: config.get('mlp_ratio', 4) },
  });
}

/** The tensors of the single block below `prefix`, by OpenAI's names without it. */
function blockEntries(model: Backbone, prefix: string): [string, Entry][] {
  return [...entriesThrough(model, openaiVisionTransformer)].flatMap(([name, entry]): [string, Entry][] =>
    name.startsWith(prefix) ? [[name.slice(prefix.length), entry]] : [],
  );
}

/** Runs a module of tokens [B, N, C] on the case's input, whichever of its first dimensions comes first there. */
function runTokens(
  model: Backbone,
  path: string,
  isBatchFirst: boolean,
): (inputs: ReadonlyMap<string, Tensor>) => Tensor {
  const turn = (t: Tensor): Tensor => (isBatchFirst ? t : t.transpose(0, 1));
  return (inputs) => turn(model.getModule(path).run(turn(soleInput(inputs)), new Context()));
}

function isBatchFirst(config: Config): boolean {
  const [tokensFirst, batchFirst] = ['(tokens, batch, channels)', '(batch, tokens, channels)'];
  return config.expect('input_layout', tokensFirst, batchFirst).get('input_layout', tokensFirst) === batchFirst;
}

/** Weight and bias of the fused projection with the increments of its slices, differentiable. */
function mergedProjection(adapter: Adapter, { weight, bias }: Pick<Linear, 'weight' | 'bias'>): Record<string, Tensor> {
  const parts = { q: 0, k: 1, v: 2 };
  const pieces = Object.keys(parts).map((name) => {
    const width = weight.shape[1] ?? 0;
    const rows = (t: Tensor): Tensor => t.narrow(0, parts[name as keyof typeof parts] * width, width);
    const here = adapter.grafts.filter(({ site }) => site.slice?.name === name);
    return here.reduce(
      (sum, { form, composition }) => {
        if (form instanceof KroneckerDelta && composition.kind === 'delta')
          return { ...sum, w: sum.w.add(form.delta(), { alpha: composition.scale }) };
        const { summand } = (form as unknown as { factorAndSummand(): { summand: Tensor } }).factorAndSummand();
        return { ...sum, b: sum.b.add(summand) };
      },
      { w: rows(weight), b: rows(bias as Tensor) },
    );
  });
  return {
    merged_in_proj_weight: aten.cat(pieces.map(({ w }) => w)),
    merged_in_proj_bias: aten.cat(pieces.map(({ b }) => b)),
  };
}

function attention(config: Config, outputs: readonly string[]): Built {
  const model = oneBlock(config, config.get('embed_dim'), config.get('num_heads'));
  const run = runTokens(model, 'blocks.0.attn', isBatchFirst(config));
  const { id, options } = kronecker(config);
  config.done();
  const adapter = graft(model, id, options, { head: 'frozen' });
  const qkv = model.getModule('blocks.0.attn.qkv');
  if (!(qkv instanceof Linear)) throw new TypeError('the fused projection is a linear layer');
  const own = [...entriesOfAdapter(adapter, 0)].map(([name, entry]): [string, Entry] => [
    name.replace(`${VISUAL}transformer.`, '').replace('resblocks.0.attn.', ''),
    entry,
  ]);
  return {
    module: model,
    state: new Map([...blockEntries(model, `${BLOCK}attn.`), ...own]),
    run: (inputs) => ({
      y: run(inputs),
      ...(outputs.includes('merged_in_proj_weight') && mergedProjection(adapter, qkv)),
    }),
  };
}

const SUBMODULES: Readonly<Record<string, { readonly role: string; readonly layers: readonly string[] }>> = {
  attn: { role: 'attention', layers: ['in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias'] },
  mlp: { role: 'mlp', layers: ['c_fc.weight', 'c_fc.bias', 'c_proj.weight', 'c_proj.bias'] },
};

/** Names of a random map's tensors in the goldens. */
const MAP = { signs: 'B', permutation: 'Pi', gaussians: 'G' } as const;

function mapEntries(projection: Fastfood, prefix = ''): [string, Entry][] {
  return (['signs', 'permutation', 'gaussians'] as const).map((leaf) => [
    prefix + MAP[leaf],
    { tensor: projection[leaf] },
  ]);
}

function checkSizes(config: Config, size: number): void {
  config.expect('D', size).expect('L', 2 ** Math.ceil(Math.log2(size)));
}

function subspaceBlock(config: Config): Built {
  const model = oneBlock(config, config.get('width'), config.get('heads'));
  const name = config.get<string>('submodule');
  const submodule = SUBMODULES[name];
  if (!submodule) throw new UnknownCase(`no builder knows the submodule '${name}'`);
  config.expect(
    'flatten_order',
    submodule.layers.map((layer) => `${name}.${layer}`),
  );
  const options = { dimension: config.get('d'), submodule: submodule.role };
  const adapter = graft(model, 'intrinsic_subspace', options, { head: 'frozen' });
  const subspace = adapter.shared.get('subspace') as unknown as { theta: Parameter; projection: Fastfood };
  checkSizes(config, subspace.projection.size);
  const run = runTokens(model, 'blocks.0', isBatchFirst(config));
  config.done();
  return {
    module: model,
    state: new Map([
      ...blockEntries(model, BLOCK),
      ['subspace.theta', { tensor: subspace.theta }] as const,
      ...mapEntries(subspace.projection, 'subspace.'),
    ]),
    run: (inputs) => ({ y: run(inputs) }),
  };
}

function fastfood(config: Config): Built {
  const projection = new Fastfood(config.get('d'), config.get('D'));
  checkSizes(config, projection.size);
  config.done();
  const theta = new Parameter(empty([projection.dimension]));
  return {
    module: projection,
    state: new Map([['theta', { tensor: theta }] as const, ...mapEntries(projection)]),
    run: () => ({ y: projection.run(theta) }),
  };
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  const op = config.get<string>('op', '');
  if (op === 'fastfood') return fastfood(config);
  if (op === 'lid_block') return subspaceBlock(config);
  if (op !== '') throw new UnknownCase(`no builder knows the operation '${op}' of kadaptation`);
  return config.has('embed_dim') ? attention(config, Object.keys(golden.outputs ?? {})) : classifier(config);
}

/** Rows whose multiply-accumulates we spend as well; the others' code forms matrices that ours need not, or runs parts twice. */
const SAME_WORK: ReadonlySet<string> = new Set(['pevit_lora', 'full', 'linear_probe']);

/** Rows count the whole CLIP, the head, and a scalar that nothing reads. */
function count(row: CountsRow): Record<string, number> {
  const name = row['method'] as string;
  const config = new Config({ variant: name === 'kadaptation' ? 'official' : name });
  const clip = createClip(row.model.replace(/^CLIP /, ''));
  const { visual } = clip;
  const numel = (tensors: readonly Tensor[]): number => tensors.reduce((sum, tensor) => sum + tensor.numel(), 0);
  const [towers, image] = [numel(clip.parameters()), numel(visual.parameters())];
  const { id, options } = choiceOf(name, config);
  const classes = row.num_classes ?? 0;
  const adapter = graft(visual, id, options, { head: { classes, norm: 'batch' } });
  const { grafts, head, trainable } = adapter.summary();
  // A rule that stays at its random start is a parameter there and a buffer here.
  const fixed = numel([...adapter.shared.values()].flatMap((part) => part.namedBuffers().map(([, buffer]) => buffer)));
  return {
    // Of the tower, without the head.
    ...(SAME_WORK.has(id) && { macs: macsOf(visual) - visual.numFeatures * classes }),
    total_parameters: towers + grafts + fixed + head + 1,
    visual_parameters: image + grafts + fixed,
    trainable_parameters: trainable,
    trainable_without_head: trainable - head,
  };
}

export const kadaptation: Builder = { system: 'kadaptation', build, count };
