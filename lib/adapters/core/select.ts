/** Finding the sites that a rule means, and saying what there is when it means none. */
import type { Site } from '../../nn/index.js';
import type { Rule, SiteQuery } from './method.js';

function list<T>(value: T | readonly T[]): readonly T[] {
  return Array.isArray(value) ? (value as readonly T[]) : [value as T];
}

/** Last part of a path: `qkv` of `blocks.0.attn.qkv`, `q` of `blocks.0.attn.qkv[q]`. */
export function siteName(site: Site): string {
  return site.slice?.name ?? site.path.slice(site.path.lastIndexOf('.') + 1);
}

function pattern(glob: string): RegExp {
  const body = glob
    .split('.')
    .map((part) => (part === '**' ? '.*' : part.replace(/[\\^$+?()|[\]{}]/g, '\\$&').replaceAll('*', '[^.]*')))
    .join('\\.');
  return new RegExp(`^${body.replaceAll('.*\\.', '(?:.*\\.)?')}$`);
}

function matchesPath(globs: string | readonly string[], path: string): boolean {
  return list(globs).some((glob) => pattern(glob).test(path));
}

function isAtDepth(wanted: NonNullable<SiteQuery['depth']>, depth: number, blocks: number): boolean {
  if (typeof wanted === 'number' || Array.isArray(wanted)) return list(wanted as number | number[]).includes(depth);
  const { from = 0, to = -1 } = wanted as { from?: number; to?: number };
  const place = (index: number): number => (index < 0 ? blocks + index : index);
  return depth >= place(from) && depth <= place(to);
}

/** Whether a site is one that the query means; `blocks` is the model's number of blocks, for ranges of depths. */
export function matches(query: SiteQuery, site: Site, blocks = 0): boolean {
  const { role, name, path, inBlock, stage, depth, minKernel, except } = query;
  if (role !== undefined && !list(role).some((r) => site.roles.includes(r))) return false;
  if (name !== undefined && !list(name).includes(siteName(site))) return false;
  if (path !== undefined && !matchesPath(path, site.path)) return false;
  if (inBlock !== undefined && (site.block !== null) !== inBlock) return false;
  if (stage !== undefined && (site.stage === undefined || !list(stage).includes(site.stage))) return false;
  if (depth !== undefined && (site.depth === undefined || !isAtDepth(depth, site.depth, blocks))) return false;
  if (minKernel !== undefined && Math.max(...(site.kernel ?? [1])) < minKernel) return false;
  return except === undefined || !matchesPath(except, site.path);
}

/** Sites of a rule in the order of the model. */
export function selectSites(rule: Rule, sites: readonly Site[]): Site[] {
  const queries = list<SiteQuery>(rule.at);
  for (const query of queries) {
    if (typeof query !== 'object' || query === null)
      throw new TypeError(`rule '${rule.id}': 'at' must be a query such as { role: 'linear' }, or a list of them`);
  }
  let blocks = 0;
  for (const { depth = -1 } of sites) blocks = Math.max(blocks, depth + 1);
  return sites.filter((site) => queries.some((query) => matches(query, site, blocks)));
}

function describeQuery(at: Rule['at']): string {
  return list<SiteQuery>(at)
    .map((query) => JSON.stringify(query))
    .join(' or ');
}

/** The message for a rule that means no site of this model: what was asked for, and the sites that there are. */
export function nothingMatched(method: string, rule: Rule, model: string, sites: readonly Site[]): RangeError {
  const roles = new Map<string, string[]>();
  for (const site of sites) for (const role of site.roles) roles.set(role, [...(roles.get(role) ?? []), site.path]);
  const lines = Array.from(roles, ([role, paths]) => {
    const shown = paths.slice(0, 3).join(', ');
    return `  ${role}: ${shown}${paths.length > 3 ? `, ... (${paths.length})` : ''}`;
  });
  return new RangeError(
    `${method}: rule '${rule.id}' asks for ${describeQuery(rule.at)}, and no site of ${model} is that. Its sites are:\n` +
      lines.join('\n'),
  );
}
