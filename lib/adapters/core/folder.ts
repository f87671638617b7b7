/**
 * An adapter on disk: a folder with `adapter_config.json`, which rebuilds the method, and `adapter_model.safetensors`,
 * which holds everything that training changed: grafts, head, trained backbone parameters, moved running statistics.
 */
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { z } from 'zod';
import { readSafetensors, writeAtomically, writeSafetensors } from '../../checkpoint/index.js';
import { compareState, describeReport } from '../../nn/index.js';
import { noGrad, type Tensor } from '../../tensor/index.js';
import type { Adapter } from './adapter.js';
import { ownFingerprint } from './fingerprint.js';
import { headOptions } from './head.js';

/** The files of an adapter folder. */
export const CONFIG_FILE = 'adapter_config.json';
export const TENSORS_FILE = 'adapter_model.safetensors';

const head = z.union([z.enum(['train', 'frozen']), headOptions]);

const config = z.object({
  format: z.literal('torchgraft'),
  version: z.literal(1),
  method: z.string(),
  options: z.record(z.string(), z.unknown()),
  head,
  backbone: z.object({
    name: z.string(),
    /** What differs from the published model; for people and for `createModel`. */
    options: z.record(z.string(), z.unknown()).optional(),
    fingerprint: z.string(),
  }),
  classNames: z.array(z.string()).nullable(),
  preprocessing: z.unknown(),
  /** What the model does, where it is no classifier. */
  task: z.unknown().optional(),
});

/** What `adapter_config.json` holds. */
export type AdapterConfig = z.output<typeof config>;

/** What goes into the folder beside the adapter. */
export interface SaveOptions {
  /** Names of the classes, in the order of the logits. */
  readonly classNames?: readonly string[];
  /** How images are prepared: any JSON value; `lib/data` writes and reads its transforms. */
  readonly preprocessing?: unknown;
  /** What is needed to build the model again, where it is more than a backbone of the registry: any JSON value. */
  readonly task?: unknown;
}

/** An adapter folder, read but not yet set into a model. */
export interface AdapterFolder {
  readonly path: string;
  readonly config: AdapterConfig;
  readonly classNames: readonly string[] | null;
  readonly preprocessing: unknown;
  readonly tensors: ReadonlyMap<string, Tensor>;
}

/** Everything that training changed, by name: see `Adapter.namedParameters`; moved statistics as `buffers.<name>`. */
export function adapterState(adapter: Adapter): Map<string, Tensor> {
  const state = new Map<string, Tensor>();
  for (const [name, parameter] of adapter.namedOwnParameters()) state.set(name, parameter);
  for (const [name, buffer] of adapter.namedBuffers()) state.set(name, buffer);
  for (const overlay of adapter.overlays) {
    const value = adapter.valueOf(overlay);
    if (overlay.trains) state.set(`backbone.${overlay.name}`, value);
    else if (!value.equal(adapter.originalOf(overlay))) state.set(`buffers.${overlay.name}`, value);
  }
  return state;
}

/** Writes the folder; each file is replaced as a whole or not at all. */
export function saveAdapter(adapter: Adapter, path: string, options: SaveOptions = {}): void {
  const { model, method } = adapter;
  if (adapter.isMerged) throw new Error(`adapter '${adapter.name}' is merged; call unmerge() before saving it`);
  const content: AdapterConfig = {
    format: 'torchgraft',
    version: 1,
    method: method.id,
    options: adapter.options,
    head: adapter.head,
    backbone: { name: model.name, options: model.options, fingerprint: ownFingerprint(model) },
    classNames: options.classNames ? [...options.classNames] : null,
    preprocessing: options.preprocessing ?? null,
    ...(options.task !== undefined && { task: options.task }),
  };
  mkdirSync(path, { recursive: true });
  const state = noGrad(() => new Map(Array.from(adapterState(adapter), ([name, t]) => [name, t.detach()])));
  writeSafetensors(join(path, TENSORS_FILE), state, { format: 'torchgraft', method: method.id });
  writeAtomically(join(path, CONFIG_FILE), (sink) => {
    sink.write(Buffer.from(`${JSON.stringify(content, null, 2)}\n`));
  });
}

/** Reads a folder without a model. @throws Error that names the file and what is wrong with it */
export function readAdapterFolder(path: string): AdapterFolder {
  const file = join(path, CONFIG_FILE);
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new Error(`${path} is no adapter folder: ${CONFIG_FILE} is missing or cannot be read`, { cause: error });
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new Error(`${file} is not JSON: ${(error as Error).message}`, { cause: error });
  }
  const parsed = config.safeParse(json);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new Error(`${file}: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'is malformed'}`);
  }
  const { tensors } = readSafetensors(join(path, TENSORS_FILE));
  const { classNames, preprocessing } = parsed.data;
  return { path, config: parsed.data, classNames, preprocessing, tensors };
}

/** See `Adapter.swap`. */
export function swapAdapterState(adapter: Adapter, folder: AdapterFolder): void {
  const { method, options, head, backbone } = folder.config;
  const pairs: [string, unknown, unknown][] = [
    ['method', adapter.method.id, method],
    ['options', adapter.options, options],
    ['head', adapter.head, head],
    ['backbone', adapter.model.name, backbone.name],
  ];
  for (const [what, own, other] of pairs) {
    if (isDeepStrictEqual(own, other)) continue;
    throw new Error(
      `the adapter in ${folder.path} cannot take the place of '${adapter.name}': its ${what} is ${JSON.stringify(other)}, ` +
        `and here it is ${JSON.stringify(own)}; set it in with loadAdapter instead`,
    );
  }
  loadAdapterState(adapter, folder.tensors, folder.path);
}

/**
 * Starts an adapter from what another one has learned: every tensor of the folder takes its place here, such as a head that
 * was trained alone and is now to be trained with grafts, or with the whole backbone. What the folder does not hold stays.
 *
 * @throws Error that names tensors which have no place here, or another shape; nothing is changed then
 */
export function startFrom(adapter: Adapter, folder: AdapterFolder): void {
  const targets = targetsOf(adapter);
  const report = compareState(targets, folder.tensors);
  const trouble = describeReport({ ...report, missing: [] });
  if (trouble !== '') {
    throw new Error(
      `'${adapter.name}' (${adapter.method.id}) cannot start from the adapter in ${folder.path}, which has learned more or ` +
        `something else than there is here.${trouble}`,
    );
  }
  noGrad(() => {
    for (const [name, t] of folder.tensors) targets.get(name)?.copy_(t);
  });
  adapter.headModule?.markTrained();
}

/** Where the tensors of a saved state belong, by name. */
function targetsOf(adapter: Adapter): Map<string, Tensor> {
  const targets = new Map<string, Tensor>();
  for (const [name, parameter] of adapter.namedOwnParameters()) targets.set(name, parameter);
  for (const [name, buffer] of adapter.namedBuffers()) targets.set(name, buffer);
  for (const overlay of adapter.overlays) {
    targets.set(`${overlay.trains ? 'backbone' : 'buffers'}.${overlay.name}`, adapter.valueOf(overlay));
  }
  return targets;
}

/** Copies a saved state into an adapter, strictly: no missing name, no unexpected one, no other shape. */
export function loadAdapterState(adapter: Adapter, tensors: ReadonlyMap<string, Tensor>, from: string): void {
  const targets = targetsOf(adapter);
  const optional = new Set(adapter.overlays.flatMap(({ name, trains }) => (trains ? [] : [`buffers.${name}`])));
  const report = compareState(targets, tensors);
  const missing = report.missing.filter((name) => !optional.has(name));
  const trouble = describeReport({ ...report, missing });
  if (trouble !== '') {
    throw new Error(
      `the adapter in ${from} does not fit its own config; nothing was loaded.${trouble}\n` +
        `  ${CONFIG_FILE} and ${TENSORS_FILE} must be of one save: save the adapter again.`,
    );
  }
  noGrad(() => {
    for (const [name, t] of tensors) targets.get(name)?.copy_(t);
    // A statistic that the folder does not hold is the backbone's own.
    for (const overlay of adapter.overlays) {
      if (!overlay.trains && !tensors.has(`buffers.${overlay.name}`))
        adapter.valueOf(overlay).copy_(adapter.originalOf(overlay));
    }
  });
  adapter.headModule?.markTrained();
}
