/**
 * Visual prompt tuning: learned tokens, pixels or channels at the input of a frozen network, or at the input of each of
 * its blocks. Jia et al., ECCV 2022, arXiv 2203.12119; official code KMnP/vpt, commit 4410440.
 */
import { z } from 'zod';
import { BatchNorm2d, Conv2d, type Module, type Site } from '../nn/index.js';
import { noGrad, type Tensor } from '../tensor/index.js';
import { before, defineMethod, replace, sequential, type Adapter, type Rule, type Surroundings } from './core/index.js';
import {
  AddPrompts,
  ChannelPrompt,
  FramePrompt,
  InsertPrompts,
  PixelPrompts,
  promptBound,
  PromptPool,
  PromptProjection,
  Prompts,
  PromptTable,
  RemovePrompts,
  ReplacePrompts,
  type PixelStart,
} from './vpt_forms.js';

const options = z.strictObject({
  /** Number of prompts P: tokens, pixels of the frame's width, or channels. */
  tokens: z.int().positive().default(5),
  /**
   * `prepend`: tokens behind the class token; `add`: one prompt for every token, added to it; `add_1`: one prompt added
   * to all; `prepend_pixel*`: pixels that the frozen patch embedding turns into tokens; `pad`: a frame of pixels;
   * `below`: channels behind the colors.
   */
  location: z
    .enum([
      'prepend',
      'add',
      'add_1',
      'prepend_pixel',
      'prepend_pixel_gaussian',
      'prepend_pixel_normalized',
      'pad',
      'below',
    ])
    .default('prepend'),
  /** Prompts of its own for every block, in place of those that leave the block before. */
  deep: z.boolean().default(false),
  /** Only so many blocks get prompts of their own, the first included; the prompts of the last of them stay. Default: all. */
  deepLayers: z.int().positive().optional(),
  /** With `deepLayers` n: the prompts are taken out before block n. */
  noExpand: z.boolean().default(false),
  /**
   * With `deepLayers` n: the last n blocks instead of the first. As in the official code, the first prompts take the
   * place of as many patches.
   */
  reverse: z.boolean().default(false),
  /** The input's prompts enter every block; the table of deep prompts is there but unused, as in the official code. */
  deepShared: z.boolean().default(false),
  /** Width of the prompts, which one linear layer widens; 0 for prompts at the width of the tokens. */
  project: z.int().min(0).default(0),
  dropout: z.number().min(0).max(1).default(0),
  /** Pixels of a frame, or channels: `random` in 0..1 and normalized like images, or `gaussian` and taken as they are. */
  initiation: z.enum(['random', 'gaussian']).default('random'),
  /** What the head reads: what it always does, or the mean of patches, of prompts, or of both, the class token left out. */
  pool: z.enum(['original', 'img', 'prompt', 'imgprompt']).default('original'),
  /** Height and width of the images, for `pad` and `below`. Default: the model's, less the frame on transformers. */
  imageSize: z.tuple([z.int().positive(), z.int().positive()]).optional(),
  /**
   * Windowed attention: `none` keeps the images of a batch apart; `official` deals prompts to windows as the published
   * code does, which mixes them.
   */
  batchCoupling: z.enum(['none', 'official']).default('none'),
  /** What of the backbone is trained besides: nothing, everything named `bias`, or the class token. */
  also: z.enum(['none', 'bias', 'cls']).default('none'),
  /** The prompts, and what comes with them, stay as they start: the comparison that trains the head only. */
  frozen: z.boolean().default(false),
});

type Options = z.output<typeof options>;

/** A part that the method brings, not trained where the options say so. */
const part = <M extends Module>(o: Options, module: M): M => (o.frozen ? module.requiresGrad_(false) : module);

/** Where the tokens enter the blocks; convolutional networks have no such place. */
const tokensSite = (around: Surroundings): Site | undefined => around.all.find(({ roles }) => roles.includes('tokens'));

/** The convolution that makes tokens of the image, with its site. */
function patchConvolution(around: Surroundings): Conv2d | null {
  const embed = around.all.find(({ roles }) => roles.includes('patch_embed'));
  const inside = around.all.find(
    ({ path, module }) => embed && path.startsWith(`${embed.path}.`) && module instanceof Conv2d,
  );
  return inside?.module instanceof Conv2d ? inside.module : null;
}

function needPatches(around: Surroundings): Conv2d {
  const conv = patchConvolution(around);
  if (!conv) throw new RangeError('this location needs a patch embedding, and the model has none; use pad');
  return conv;
}

/** The model's images: as its input site says, or the option. */
function imageSize(site: Site, o: Options, around: Surroundings): readonly [number, number] {
  if (o.imageSize) return o.imageSize;
  if (!site.size) throw new RangeError('the size of the images is not known here; give imageSize');
  const frame = o.location === 'pad' && patchConvolution(around) ? 2 * o.tokens : 0;
  const [height, width] = [site.size[0] - frame, site.size[1] - frame];
  if (height < 1 || width < 1) {
    throw new RangeError(`a frame of ${o.tokens} leaves nothing of ${site.size.join(' x ')}; create the model larger`);
  }
  return [height, width];
}

function projectionOf(o: Options, dim: number, around: Surroundings): PromptProjection | null {
  const widths = new Set(around.all.filter(({ roles }) => roles.includes('block')).map((site) => site.in));
  if (o.project > 0 && widths.size > 1) {
    throw new RangeError(`one projection cannot serve blocks of ${[...widths].join(', ')} channels; leave project out`);
  }
  return o.project > 0 ? around.shared('prompt_proj', () => part(o, new PromptProjection(o.project, dim))) : null;
}

/** A shared table of `rows` times `count` prompts and one of its rows as it enters at `site`. */
function promptsOf(
  site: Site,
  o: Options,
  around: Surroundings,
  at: { table: string; rows: number; row: number; count: number },
): Prompts {
  const width = o.project > 0 ? o.project : site.in;
  const bound = promptBound(needPatches(around).kernelSize, inputWidth(o, around) ?? width);
  const table = around.shared(at.table, () => part(o, new PromptTable(at.rows, at.count, width, bound)));
  return new Prompts(table, at.row, { projection: projectionOf(o, site.in, around), dropout: o.dropout });
}

/** Width that bounds the start of all prompts: that of the first stage where stages differ. */
function inputWidth(o: Options, around: Surroundings): number | null {
  return o.project > 0 ? o.project : (tokensSite(around)?.in ?? null);
}

/** How many prompts a row holds. */
function countOf(site: Site, o: Options, around: Surroundings): number {
  if (o.location === 'add_1') return 1;
  if (o.location !== 'add') return o.tokens;
  const { length } = tokensSite(around) ?? site;
  if (length === undefined)
    throw new RangeError('the number of tokens of this model is not fixed; use add_1 or prepend');
  return length;
}

/** The row of a block in its stage's table: `deep`, or `deep_0`, `deep_1` ... where there are several stages. */
function deepPrompts(site: Site, o: Options, around: Surroundings): Prompts {
  const blocks = around.all.filter(({ roles }) => roles.includes('block'));
  const stages = new Set(blocks.map(({ stage }) => stage)).size;
  const peers = around.sites.filter(({ stage }) => stages === 1 || stage === site.stage);
  const at = {
    table: stages === 1 ? 'deep' : `deep_${site.stage ?? 0}`,
    rows: peers.length,
    row: peers.indexOf(site),
    count: countOf(site, o, around),
  };
  const own = promptsOf(site, o, around, at);
  return o.deepShared ? promptsOf(site, o, around, { ...at, table: 'prompts', rows: 1, row: 0 }) : own;
}

function deepRules(o: Options): Rule[] {
  const { deepLayers: n, reverse } = o;
  const depth = reverse ? { from: -(n ?? 0) } : { from: 1, ...(n !== undefined && { to: n - 1 }) };
  const adds = o.location.startsWith('add');
  const rules: Rule[] = [];
  if (reverse ? n !== undefined : n !== 1) {
    rules.push({
      id: 'deep',
      at: { role: 'block', depth },
      compose: before(),
      optional: true,
      form: (site, around) => {
        const prompts = deepPrompts(site, o, around);
        return adds ? new AddPrompts(prompts) : new ReplacePrompts(prompts, reverse && around.sites[0] === site);
      },
    });
  }
  if (o.noExpand && n !== undefined && !reverse) {
    const at = { role: 'block', depth: { from: n, to: n } };
    rules.push({ id: 'remove', at, compose: before(), optional: true, form: () => new RemovePrompts(o.tokens) });
  }
  return rules;
}

function tokenRules(o: Options): Rule[] {
  const rules: Rule[] = [];
  if (!(o.deep && o.reverse)) {
    rules.push({
      id: 'prompt',
      at: { role: 'tokens' },
      compose: sequential({ residual: false }),
      form: (site, around) => {
        const at = { table: 'prompts', rows: 1, row: 0, count: countOf(site, o, around) };
        const prompts = promptsOf(site, o, around, at);
        const acrossBatch = o.batchCoupling === 'official';
        return o.location === 'prepend' ? new InsertPrompts(prompts, acrossBatch) : new AddPrompts(prompts);
      },
    });
  }
  return o.deep ? [...rules, ...deepRules(o)] : rules;
}

const PIXEL_START: Readonly<Record<string, PixelStart>> = {
  prepend_pixel: 'bounded',
  prepend_pixel_gaussian: 'gaussian',
  prepend_pixel_normalized: 'uniform',
};

function pixelRule(o: Options): Rule {
  const form = (site: Site, around: Surroundings): Module => {
    const conv = needPatches(around);
    const bound = promptBound(conv.kernelSize, site.in);
    const prompts = part(o, new PixelPrompts(o.tokens, conv, PIXEL_START[o.location] ?? 'bounded', bound));
    return new InsertPrompts(prompts);
  };
  return { id: 'prompt', at: { role: 'tokens' }, compose: sequential({ residual: false }), form };
}

function padRule(o: Options): Rule {
  const start = o.initiation === 'random' ? 'uniform' : 'gaussian';
  const form = (site: Site, around: Surroundings): Module =>
    part(o, new FramePrompt(imageSize(site, o, around), o.tokens, start));
  return { id: 'prompt', at: { role: 'input' }, compose: sequential({ residual: false }), form };
}

/** The first convolution, and on a ResNet the norm behind it, are set anew and trained. */
function belowRules(o: Options): Rule[] {
  const convolution = (site: Site, around: Surroundings): Module => {
    const input = around.all.find(({ roles }) => roles.includes('input'));
    if (!input || !(site.module instanceof Conv2d))
      throw new RangeError('below needs a convolution that reads the image');
    const onPatches = patchConvolution(around) !== null;
    const start = onPatches ? 'bounded' : o.initiation === 'random' ? 'uniform' : 'gaussian';
    const bound = promptBound(site.module.kernelSize, site.out);
    return part(o, new ChannelPrompt(imageSize(input, o, around), o.tokens, site.module, start, bound));
  };
  const norm = ({ module }: Site): Module => {
    if (!(module instanceof BatchNorm2d))
      throw new RangeError(`needs a BatchNorm, and this is a ${module.constructor.name}`);
    const own = new BatchNorm2d(module.numFeatures, { eps: module.eps });
    // Tensor by tensor, which also goes on the meta device.
    const values = module.namedState();
    noGrad(() => {
      own.namedState().forEach(([, tensor], i) => tensor.copy_(values[i]?.[1] as Tensor));
    });
    return part(o, own);
  };
  return [
    { id: 'below', at: [{ path: 'patch_embed.proj' }, { path: 'conv1' }], compose: replace(), form: convolution },
    { id: 'norm', at: { path: 'bn1' }, compose: replace(), form: norm, optional: true },
  ];
}

/** How many prompts stand among the tokens that the head reads: `noExpand` takes them out behind the last block that has any. */
function promptsAtEnd(o: Options, blocks: number): number {
  if (!o.location.startsWith('prepend')) return 0;
  return o.deep && o.noExpand && !o.reverse && (o.deepLayers ?? blocks) < blocks ? 0 : o.tokens;
}

function poolRule(o: Options, blocks: number): Rule[] {
  const { pool } = o;
  if (pool === 'original') return [];
  const prompts = promptsAtEnd(o, blocks);
  if (pool === 'prompt' && prompts === 0) {
    throw new RangeError(
      "vpt: pool 'prompt' finds no prompts among the tokens at the end; take img, or location prepend",
    );
  }
  return [{ id: 'pool', at: { role: 'pool' }, compose: replace(), form: () => new PromptPool(pool, prompts) }];
}

/** What is wrong with options beside the location, or null. */
function locationMisfit(o: Options): string | null {
  const { location, initiation } = o;
  const given = o.deep ? 'deep' : o.project > 0 ? 'project' : o.dropout > 0 ? 'dropout' : null;
  if (given && !['prepend', 'add', 'add_1'].includes(location)) {
    return `${given} is for prompts of the width of tokens, not for location ${location}; take prepend, add or add_1`;
  }
  if (initiation !== 'random' && !['pad', 'below'].includes(location)) {
    return `initiation ${initiation} is for pad and below; prompts at location ${location} have a start of their own`;
  }
  return null;
}

/** What is wrong with the options of deep prompts in these blocks, or null. */
function depthMisfit(o: Options, blocks: readonly Site[]): string | null {
  const { location, deepLayers: n } = o;
  if (!o.deep) {
    const given = (['deepLayers', 'noExpand', 'reverse', 'deepShared'] as const).find((key) => o[key]);
    return given ? `${given} is for deep prompts; give deep: true` : null;
  }
  const order = o.reverse ? 'reverse' : o.noExpand ? 'noExpand' : null;
  if (order && n === undefined) return `${order} needs deepLayers, the number of blocks with prompts of their own`;
  if (n !== undefined && blocks.length > 0 && n > blocks.length) {
    return `deepLayers is ${n}, and the model has ${blocks.length} blocks; at most ${blocks.length}`;
  }
  if (order && location !== 'prepend') {
    return `${order} is for prompts that stand among the tokens; take location prepend`;
  }
  if (location === 'add' && new Set(blocks.map(({ stage }) => stage)).size > 1) {
    return 'deep prompts for every token need as many tokens in all blocks; take add_1 or prepend';
  }
  return null;
}

/** Official name of a shared part or graft, without the prefix (`enc.transformer.` on ViT, `enc.` on Swin and MAE). */
function officialName(rule: string, leaf: string): string | null {
  if (rule === 'prompts') return 'prompt_embeddings';
  if (rule.startsWith('deep')) return rule.replace('deep', 'deep_prompt_embeddings');
  if (rule === 'prompt_proj') return leaf.replace('proj', 'prompt_proj');
  if (rule === 'below') return leaf === 'embeddings' ? 'prompt_embeddings' : leaf.replace('conv.', 'conv1.');
  if (rule === 'norm') return `bn1.${leaf}`;
  const own: Readonly<Record<string, string>> = { tb: 'prompt_embeddings_tb', lr: 'prompt_embeddings_lr' };
  return own[leaf] ?? (leaf === 'prompts.embeddings' ? 'prompt_embeddings' : null);
}

/**
 * Visual prompts; shallow as a default, deep with `deep: true`. The adapted model never starts as the backbone. On Swin
 * prompts join every window, each image's own (the official code mixes the images of a batch). 460,800 parameters on
 * ViT-B/16 for 50 deep prompts. Does not merge.
 */
export const vpt = defineMethod({
  id: 'vpt',
  summary: 'learned tokens, pixels or channels at the input, or at every block',
  paper: 'Jia et al., Visual Prompt Tuning, ECCV 2022, arXiv 2203.12119',
  options,
  rules: (o, sites) => {
    const blocks = sites.filter(({ roles }) => roles.includes('block'));
    const misfit = locationMisfit(o) ?? depthMisfit(o, blocks);
    if (misfit !== null) throw new RangeError(`vpt: ${misfit}`);
    const pool = poolRule(o, blocks.length);
    if (o.location === 'pad') return [padRule(o), ...pool];
    if (o.location === 'below') return [...belowRules(o), ...pool];
    return [...(o.location.startsWith('prepend_pixel') ? [pixelRule(o)] : tokenRules(o)), ...pool];
  },
  trains:
    ({ also }) =>
    ({ name }) =>
      also === 'bias' ? name.includes('bias') : also === 'cls' && name === 'cls_token',
  backboneMode: 'eval',
  headInit: 'prior',
  officialHead: 'head.last_layer',
  learningRate: 0.01,
  officialName: ({ rule, leaf }) => officialName(rule, leaf),
});

/**
 * Sets prompts to class tokens that were gathered on the training set, the paper's other starts.
 *
 * @param data [P, L + 1, D]: for each of P groups of images the class embedding before the first block and after each of
 *   the L blocks
 * @param which `final_cls`: every block the last ones; `cls_nolastl`: block i what enters it; `cls_nofirstl`: what leaves it
 * @throws RangeError when the adapter is no `vpt` with prompts at the width of the tokens, or the sizes differ
 */
export function startPromptsFromClassTokens(
  adapter: Adapter,
  data: Tensor,
  which: 'final_cls' | 'cls_nolastl' | 'cls_nofirstl',
): void {
  const tables = ['prompts', 'deep'].map((name) => adapter.shared.get(name)).filter((t) => t instanceof PromptTable);
  const [count = 0, states = 0, width = 0] = data.shape;
  const fits = tables.every(({ embeddings: { shape } }) => shape[1] === count && shape[2] === width);
  const rows = tables.reduce((sum, { embeddings }) => sum + (embeddings.shape[0] ?? 0), 0);
  if (tables.length === 0 || data.ndim !== 3 || !fits || (which !== 'final_cls' && rows > states - 1)) {
    const needed = tables.map(({ embeddings }) => `[${embeddings.shape.join(', ')}]`).join(' and ') || 'none';
    throw new RangeError(
      `data of [${data.shape.join(', ')}] does not fit the prompts of '${adapter.name}' (${needed})`,
    );
  }
  let layer = 0;
  noGrad(() => {
    for (const { embeddings } of tables) {
      for (let row = 0; row < (embeddings.shape[0] ?? 0); row++, layer++) {
        const state = which === 'final_cls' ? states - 1 : which === 'cls_nolastl' ? layer : layer + 1;
        embeddings.select(0, row).copy_(data.select(1, state));
      }
    }
  });
}
