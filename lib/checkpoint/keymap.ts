import { aten, type Tensor } from '../tensor/index.js';
import { quote } from './errors.js';

/**
 * A pattern over dotted names. `{x}` stands for one component, `{x...}` for one or more; everything else is literal.
 * So 'layers.{i}.{rest...}' matches 'layers.3.mlp.fc1.weight' with i = 3 and rest = mlp.fc1.weight, and a pattern
 * without braces is one exact name. Prefixes are renamed with 'backbone.{rest...}' -> '{rest...}'.
 */
export type KeyPattern = string;

/** One rule of a key map. Rules are applied in order, each to all names that the ones before it left. */
export type KeyRule =
  | RenameRule
  /** Removes the tensors that match. Cannot be inverted. */
  | { readonly kind: 'drop'; readonly match: KeyPattern | RegExp }
  /** Cuts a tensor along `dim` (default 0) into the parts named by `to`: equal ones, or of `sizes`. */
  | {
      readonly kind: 'split';
      readonly from: KeyPattern;
      readonly to: readonly KeyPattern[];
      readonly sizes?: readonly number[];
      readonly dim?: number;
    }
  /** Joins the tensors named by `from` along `dim` (default 0). `sizes` are only needed to invert unequal parts. */
  | {
      readonly kind: 'concat';
      readonly from: readonly KeyPattern[];
      readonly to: KeyPattern;
      readonly sizes?: readonly number[];
      readonly dim?: number;
    }
  /** Permutes the dimensions of the tensors that match: `dims` as in `permute`; [1, 0] transposes a matrix. */
  | { readonly kind: 'permute'; readonly match: KeyPattern; readonly dims: readonly number[] }
  /** Sets a dimension of size 1 in at `dim`, or takes it out, of the tensors that match. */
  | { readonly kind: 'unsqueeze' | 'squeeze'; readonly match: KeyPattern; readonly dim: number };

/** Renames by pattern, or by regular expression (`$1` in `to`), which is inverted by `back` if given. */
export type RenameRule =
  | { readonly kind: 'rename'; readonly from: KeyPattern; readonly to: KeyPattern }
  | {
      readonly kind: 'rename';
      readonly from: RegExp;
      readonly to: string;
      readonly back?: { readonly from: RegExp; readonly to: string };
    };

/** A foreign format's names as data. */
export type KeyMap = readonly KeyRule[];

/** What `applyKeyMap` did. */
export interface KeyMapResult {
  readonly tensors: Map<string, Tensor>;
  /** Rules that matched no name: the wrong format, or a rule that has outlived its format. */
  readonly unused: KeyRule[];
  /** Names that a `drop` rule removed. */
  readonly dropped: string[];
}

/**
 * Translates names (and layouts) from a foreign format. Names that no rule matches pass through, so a checkpoint that
 * is already in our spelling stays as it is. Split and permuted tensors are views; concatenated ones are new.
 *
 * @throws TypeError when two tensors end up with one name, when a concat finds only some of its parts, or a pattern is malformed
 * @throws RangeError when a tensor does not have the shape that a rule needs
 */
export function applyKeyMap(map: KeyMap, tensors: Iterable<readonly [string, Tensor]>): KeyMapResult {
  let current = new Map(tensors);
  const unused: KeyRule[] = [];
  const dropped: string[] = [];
  for (const rule of map) {
    const step = applyRule(rule, current, dropped);
    if (!step.isUsed) unused.push(rule);
    current = step.tensors;
  }
  return { tensors: current, unused, dropped };
}

/** The map that leads back: rules inverted, in reverse order. A rule that loses something is a TypeError that names it. */
export function invertKeyMap(map: KeyMap): KeyRule[] {
  return [...map].reverse().map(invertRule);
}

/** True when every rule can be inverted. */
export function isInvertible(map: KeyMap): boolean {
  // `every` would pass over holes, however many.
  for (const rule of map) {
    if (rule.kind === 'drop' || (rule.kind === 'rename' && rule.from instanceof RegExp && !hasBack(rule))) return false;
  }
  return true;
}

function hasBack(rule: RenameRule): boolean {
  return 'back' in rule && rule.back !== undefined;
}

function invertRule(rule: KeyRule): KeyRule {
  switch (rule.kind) {
    case 'rename':
      if (typeof rule.from === 'string') return { kind: 'rename', from: rule.to, to: rule.from };
      if ('back' in rule && rule.back) {
        return { kind: 'rename', ...rule.back, back: { from: rule.from, to: rule.to } };
      }
      throw new TypeError(
        `key map: renaming by ${String(rule.from)} cannot be inverted; give it "back", or use a pattern with {placeholders}`,
      );
    case 'drop':
      throw new TypeError(`key map: dropping ${String(rule.match)} cannot be inverted, the tensors are gone`);
    case 'split':
      return { ...rule, kind: 'concat', from: rule.to, to: rule.from };
    case 'concat':
      return { ...rule, kind: 'split', from: rule.to, to: rule.from };
    case 'permute':
      return { ...rule, dims: rule.dims.map((_, axis) => rule.dims.indexOf(axis)) };
    case 'unsqueeze':
      return { ...rule, kind: 'squeeze' };
    case 'squeeze':
      return { ...rule, kind: 'unsqueeze' };
  }
}

interface Step {
  readonly tensors: Map<string, Tensor>;
  readonly isUsed: boolean;
}

function applyRule(rule: KeyRule, current: Map<string, Tensor>, dropped: string[]): Step {
  switch (rule.kind) {
    case 'rename':
      return mapEach(current, (name, tensor) => {
        const renamed = rename(rule, name);
        return renamed === null ? null : [[renamed, tensor]];
      });
    case 'drop':
      return mapEach(current, (name) => {
        const isMatch =
          rule.match instanceof RegExp ? matchesRegExp(rule.match, name) : match(rule.match, name) !== null;
        if (isMatch) dropped.push(name);
        return isMatch ? [] : null;
      });
    case 'permute':
      return mapEach(current, (name, tensor) => {
        if (match(rule.match, name) === null) return null;
        if (tensor.ndim !== rule.dims.length) {
          throw new RangeError(
            `key map: ${quote(name)} has ${tensor.ndim} dimensions, but the rule permutes [${rule.dims.join(', ')}]`,
          );
        }
        return [[name, tensor.permute([...rule.dims])]];
      });
    case 'unsqueeze':
      return mapEach(current, (name, tensor) =>
        match(rule.match, name) === null ? null : [[name, tensor.unsqueeze(rule.dim)]],
      );
    case 'squeeze':
      return mapEach(current, (name, tensor) => {
        if (match(rule.match, name) === null) return null;
        if (tensor.shape[rule.dim] !== 1) {
          throw new RangeError(
            `key map: ${quote(name)} of shape [${tensor.shape.join(', ')}] has no dimension ${rule.dim} of size 1 to take out`,
          );
        }
        return [[name, tensor.squeeze(rule.dim)]];
      });
    case 'split':
      return mapEach(current, (name, tensor) => {
        const found = match(rule.from, name);
        return (
          found &&
          split(
            name,
            tensor,
            rule.to.map((pattern) => fill(pattern, found)),
            rule.sizes,
            rule.dim ?? 0,
          )
        );
      });
    case 'concat':
      return concat(rule.from, rule.to, rule.dim ?? 0, current);
  }
}

function mapEach(
  current: Map<string, Tensor>,
  change: (name: string, tensor: Tensor) => [string, Tensor][] | null,
): Step {
  const tensors = new Map<string, Tensor>();
  let isUsed = false;
  for (const [name, tensor] of current) {
    const changed = change(name, tensor);
    if (changed) isUsed = true;
    for (const [key, value] of changed ?? [[name, tensor] as const]) put(tensors, key, value);
  }
  return { tensors, isUsed };
}

function put(tensors: Map<string, Tensor>, name: string, tensor: Tensor): void {
  if (tensors.has(name)) throw new TypeError(`key map: two tensors end up as ${quote(name)}`);
  tensors.set(name, tensor);
}

function rename(rule: RenameRule, name: string): string | null {
  if (typeof rule.from === 'string') {
    const found = match(rule.from, name);
    return found && fill(rule.to, found);
  }
  return matchesRegExp(rule.from, name) ? name.replace(rule.from, rule.to) : null;
}

/** `test` of a global or sticky expression depends on where its last use stopped. */
function matchesRegExp(expression: RegExp, name: string): boolean {
  return name.search(expression) >= 0;
}

function split(
  name: string,
  tensor: Tensor,
  parts: string[],
  sizes: readonly number[] | undefined,
  dim: number,
): [string, Tensor][] {
  const length = tensor.shape[dim] ?? 0;
  const lengths = sizes ?? parts.map(() => length / parts.length);
  const total = lengths.reduce((sum, size) => sum + size, 0);
  if (dim >= tensor.ndim || lengths.length !== parts.length || total !== length || !lengths.every(Number.isInteger)) {
    throw new RangeError(
      `key map: ${quote(name)} of shape [${tensor.shape.join(', ')}] cannot be cut along dimension ${dim} into ` +
        (sizes ? `[${sizes.join(', ')}] for ${parts.length} names` : `${parts.length} equal parts`),
    );
  }
  let start = 0;
  return parts.map((part, index) => {
    const size = lengths[index] ?? 0;
    start += size;
    return [part, tensor.narrow(dim, start - size, size)];
  });
}

function concat(from: readonly KeyPattern[], to: KeyPattern, dim: number, current: Map<string, Tensor>): Step {
  const first = from[0];
  if (first === undefined) throw new TypeError(`key map: the concat rule for ${quote(to)} names no parts`);
  const tensors = new Map<string, Tensor>();
  const consumed = new Set<string>();
  // The joined tensor stands where its first part stood.
  for (const [name, tensor] of current) {
    if (consumed.has(name)) continue;
    const found = matchAny(from, name);
    if (!found) {
      put(tensors, name, tensor);
      continue;
    }
    const names = from.map((pattern) => fill(pattern, found));
    const parts = names.map((part) => {
      const value = current.get(part);
      if (!value)
        throw new TypeError(
          `key map: ${quote(fill(to, found))} is joined from ${names.map(quote).join(', ')}, but ${quote(part)} is missing`,
        );
      return value;
    });
    for (const part of names) consumed.add(part);
    put(tensors, fill(to, found), aten.cat(parts, dim));
  }
  return { tensors, isUsed: consumed.size > 0 };
}

function matchAny(patterns: readonly KeyPattern[], name: string): Map<string, string> | null {
  for (const pattern of patterns) {
    const found = match(pattern, name);
    if (found) return found;
  }
  return null;
}

interface Compiled {
  readonly expression: RegExp;
  readonly names: string[];
}

const compiled = new Map<KeyPattern, Compiled>();
const PLACEHOLDER = /\{(\w+)(\.\.\.)?\}/g;

function compile(pattern: KeyPattern): Compiled {
  const known = compiled.get(pattern);
  if (known) return known;
  const names: string[] = [];
  let source = '';
  let end = 0;
  for (const found of pattern.matchAll(PLACEHOLDER)) {
    const name = found[1] ?? '';
    if (names.includes(name)) throw new TypeError(`key map: pattern ${quote(pattern)} names {${name}} twice`);
    names.push(name);
    source += escape(pattern.slice(end, found.index)) + (found[2] ? '(.+)' : '([^.]+)');
    end = found.index + found[0].length;
  }
  source += escape(pattern.slice(end));
  if (/[{}]/.test(pattern.replace(PLACEHOLDER, '')))
    throw new TypeError(`key map: pattern ${quote(pattern)} has a stray brace`);
  const result = { expression: new RegExp(`^${source}$`), names };
  compiled.set(pattern, result);
  return result;
}

function escape(literal: string): string {
  return literal.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
}

function match(pattern: KeyPattern, name: string): Map<string, string> | null {
  const { expression, names } = compile(pattern);
  const found = expression.exec(name);
  return found && new Map(names.map((placeholder, index) => [placeholder, found[index + 1] ?? '']));
}

function fill(pattern: KeyPattern, found: Map<string, string>): string {
  return pattern.replace(PLACEHOLDER, (_, name: string) => {
    const value = found.get(name);
    if (value === undefined)
      throw new TypeError(`key map: pattern ${quote(pattern)} uses {${name}}, which the other side does not name`);
    return value;
  });
}
