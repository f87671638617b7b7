import type { Module } from './module.js';

/**
 * What a place in a backbone is, for rules to match. The common ones are listed; a backbone may publish others (text models
 * also say which attention: `cross_keys`, `decoder_heads`). A place may have several.
 */
export type Role =
  /** The images; the tokens that enter the blocks; the last features; the vector that enters the classifier. */
  | 'input'
  | 'patch_embed'
  | 'tokens'
  | 'stem'
  | 'features'
  | 'pool'
  | 'pre_logits'
  | 'classifier'
  | 'block'
  | 'stage'
  /** Layers. `norm` are those of the body; `head_norm` stands between the features and the classifier. */
  | 'conv'
  | 'linear'
  | 'norm'
  | 'head_norm'
  /** A linear layer that says where, and how strongly, to sample. */
  | 'sampling'
  /** Projections of an attention: layers, or slices of one. */
  | 'q'
  | 'k'
  | 'v'
  | 'attention'
  | 'mlp'
  /** What an attention's (an MLP's) normed input becomes until it is added to the stream, stochastic depth included. */
  | 'attention_path'
  | 'mlp_path'
  /** As `attention_path`, from the stream itself, the norm included. */
  | 'attention_branch'
  | 'mlp_branch'
  /** The stream itself before either branch and its skip: what is added here, both of them carry. */
  | 'attention_stream'
  | 'mlp_stream'
  /** Keys and values of an attention, and the stretch from queries to heads, all in layout `heads`; the heads joined. */
  | 'keys'
  | 'values'
  | 'heads'
  | 'joined_heads'
  /** A convolutional block's spatial convolution with what acts on it, its whole branch, and what halves the map. */
  | 'spatial'
  | 'residual'
  | 'downsample'
  | (string & {});

/** How the features at a site lie in memory: `map` [B, C, H, W], `tokens` [B, N, C], `vector` [B, C], `heads` [B, H, N, C/H]. */
export type SiteLayout = 'map' | 'tokens' | 'vector' | 'heads';

/** A height and a width; a single number stands for both. */
export type Size2 = number | readonly [height: number, width: number];

/** Some consecutive output channels of a site that have a meaning of their own, such as q of a fused projection. */
export interface SliceTag {
  readonly name: string;
  readonly start: number;
  readonly length: number;
  /** Roles of the slice as a site of its own. Default: its name. */
  readonly role?: Role | readonly Role[];
}

/** What a backbone says about a place when it publishes it. What a layer knows about itself may be left out. */
export interface SiteTag {
  readonly role: Role | readonly Role[];
  /** Channels in. */
  readonly in?: number;
  /** Channels out. */
  readonly out?: number;
  readonly layout?: SiteLayout;
  /** Index of the stage (resolution level), from 0. */
  readonly stage?: number;
  /** Index of the block over the whole backbone, from 0. */
  readonly depth?: number;
  readonly kernel?: Size2;
  readonly stride?: Size2;
  readonly padding?: Size2;
  readonly groups?: number;
  /** Number of heads, at sites of an attention. */
  readonly heads?: number;
  /** Factor of the products of queries and keys, at sites of an attention. Absent: 1 / sqrt(width of a head). */
  readonly scoreScale?: number;
  /** Height and width of a map at the image size that the model was built for. */
  readonly size?: Size2;
  /** Number of tokens at that size, class token and registers included, where it is fixed. */
  readonly length?: number;
  /** Name of the nonlinearity that follows the site inside its block, such as `relu`. */
  readonly activation?: string;
  /** Set where the classifier reads the mean over the features of the site, and nothing else reads them. */
  readonly reader?: 'classifier';
  readonly slice?: readonly SliceTag[];
}

/** The part of a tag that a layer can state by itself. */
export type SiteDefaults = Omit<SiteTag, 'role' | 'slice'>;

/** A place where a graft may sit. */
export interface Site {
  /** Path of the module; a slice's path ends in its name, as in `blocks.0.attn.qkv[q]`. */
  readonly path: string;
  readonly module: Module;
  readonly roles: readonly Role[];
  readonly in: number;
  readonly out: number;
  readonly layout: SiteLayout;
  readonly stage?: number;
  readonly depth?: number;
  readonly kernel?: readonly [number, number];
  readonly stride?: readonly [number, number];
  readonly padding?: readonly [number, number];
  readonly groups?: number;
  readonly heads?: number;
  readonly scoreScale?: number;
  readonly size?: readonly [number, number];
  readonly length?: number;
  readonly activation?: string;
  readonly reader?: 'classifier';
  /** Path of the innermost module with role `block` that contains the site (or is the site); null outside blocks. */
  readonly block: string | null;
  /** For a slice: which output channels of the module. */
  readonly slice?: { readonly name: string; readonly start: number; readonly length: number };
}

/** Path of the module that a site belongs to: a slice's own path less its name. */
export function modulePath({ path, slice }: Site): string {
  return slice ? path.slice(0, -`[${slice.name}]`.length) : path;
}

/**
 * Publishes `module` as a site and returns it. Channels, layout and convolution geometry may be left out where the
 * layer knows them (Linear, Conv2d, norms).
 *
 * @throws TypeError when channels or layout are neither given nor known; RangeError when a slice leaves the output channels
 */
export function site<M extends Module>(module: M, tag: SiteTag): M {
  const full = { ...module.siteDefaults(), ...tag };
  const name = module.constructor.name;
  for (const key of ['in', 'out', 'layout'] as const) {
    if (full[key] === undefined) {
      throw new TypeError(
        `site: a ${name} does not know '${key}' by itself; give it in the tag of role '${String(tag.role)}'`,
      );
    }
  }
  for (const slice of full.slice ?? []) {
    if (slice.start < 0 || slice.length < 1 || slice.start + slice.length > (full.out ?? 0)) {
      throw new RangeError(
        `site: slice '${slice.name}' covers channels ${slice.start} to ${slice.start + slice.length} of a ${name} with ${full.out} outputs`,
      );
    }
  }
  module.siteTag = full;
  return module;
}

/** A size as a pair. */
export function pair(size: Size2): readonly [number, number] {
  return typeof size === 'number' ? [size, size] : size;
}

function roleList(role: Role | readonly Role[]): readonly Role[] {
  return typeof role === 'string' ? [role] : role;
}

/** The fields of a site that its tag gives as they are or as pairs; absent fields stay absent. */
function geometry(tag: SiteTag) {
  return {
    ...(tag.stage !== undefined && { stage: tag.stage }),
    ...(tag.depth !== undefined && { depth: tag.depth }),
    ...(tag.kernel !== undefined && { kernel: pair(tag.kernel) }),
    ...(tag.stride !== undefined && { stride: pair(tag.stride) }),
    ...(tag.padding !== undefined && { padding: pair(tag.padding) }),
    ...(tag.groups !== undefined && { groups: tag.groups }),
    ...(tag.heads !== undefined && { heads: tag.heads }),
    ...(tag.scoreScale !== undefined && { scoreScale: tag.scoreScale }),
    ...(tag.size !== undefined && { size: pair(tag.size) }),
    ...(tag.length !== undefined && { length: tag.length }),
    ...(tag.activation !== undefined && { activation: tag.activation }),
    ...(tag.reader !== undefined && { reader: tag.reader }),
  };
}

/**
 * All sites of a model in the order of its modules, slices after the module that they belong to. Includes spans and
 * identity modules; a module that stands at two paths is listed at the first.
 */
export function sitesOf(model: Module): Site[] {
  const sites: Site[] = [];
  const seen = new Set<Module>();
  const visit = (module: Module, path: string, outerBlock: string | null): void => {
    if (seen.has(module)) return;
    seen.add(module);
    const tag = module.siteTag;
    let block = outerBlock;
    if (tag !== undefined) {
      const roles = roleList(tag.role);
      if (roles.includes('block')) block = path;
      // site() has checked that these three are there.
      const ends = { in: tag.in ?? 0, out: tag.out ?? 0, layout: tag.layout ?? 'map' };
      sites.push({ path, module, roles, ...ends, ...geometry(tag), block });
      for (const { name, start, length, role } of tag.slice ?? []) {
        const slice = { name, start, length };
        sites.push({
          path: `${path}[${name}]`,
          module,
          roles: roleList(role ?? name),
          ...ends,
          out: length,
          ...geometry(tag),
          block,
          slice,
        });
      }
    }
    for (const [name, child] of module.namedChildren()) visit(child, path === '' ? name : `${path}.${name}`, block);
  };
  visit(model, '', null);
  return sites;
}
