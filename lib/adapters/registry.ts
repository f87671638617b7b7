/** Methods by name. A new method is one file, one import and one entry here. */
import type { z } from 'zod';
import { suggestion, type Host } from '../models/index.js';
import { adapter } from './adapter.js';
import { adaptformer } from './adaptformer.js';
import { bitfit } from './bitfit.js';
import { compacter } from './compacter.js';
import { convAdapter } from './conv_adapter.js';
import { convpass } from './convpass.js';
import {
  AdapterHost,
  graftFolder,
  graftMethod,
  readAdapterFolder,
  type Adapter,
  type AdapterFolder,
  type GraftOptions,
  type LoadAdapterOptions,
  type Method,
} from './core/index.js';
import { fact } from './fact.js';
import { full } from './full.js';
import { intrinsicSubspace } from './intrinsic_subspace.js';
import { kadaptation } from './kadaptation.js';
import { krona, kronaB, kronaBRes, lokr } from './krona.js';
import { linearProbe } from './linear_probe.js';
import { lora } from './lora.js';
import { mam } from './mam.js';
import { pevitLora } from './pevit_lora.js';
import { noah } from './noah.js';
import { prefix } from './prefix.js';
import { proTuning } from './pro_tuning.js';
import { promptTuning } from './prompt_tuning.js';
import { spm } from './spm.js';
import { ssf } from './ssf.js';
import { stAdapter } from './st_adapter.js';
import { vpt } from './vpt.js';

const methods: readonly Method[] = [
  linearProbe,
  full,
  bitfit,
  lora,
  ssf,
  convAdapter,
  vpt,
  convpass,
  fact,
  proTuning,
  adaptformer,
  kadaptation,
  pevitLora,
  compacter,
  intrinsicSubspace,
  krona,
  kronaB,
  kronaBRes,
  lokr,
  adapter,
  prefix,
  mam,
  promptTuning,
  noah,
  stAdapter,
  spm,
];
const byId = new Map(methods.map((method) => [method.id, method]));

/** Ids of all methods. */
export function listMethods(): string[] {
  return [...byId.keys()];
}

/** What is known about a method. */
export interface MethodInfo {
  readonly id: string;
  readonly summary: string;
  readonly paper: string;
  /** Every option with its default; undefined where there is none. */
  readonly options: Readonly<Record<string, unknown>>;
}

/** A method's declaration by id. @throws RangeError for an unknown one, with the nearest */
export function findMethod(id: string): Method {
  const method = byId.get(id);
  if (method) return method;
  throw new RangeError(`there is no method '${id}'${suggestion(id, byId.keys())}; listMethods() names all`);
}

/** Facts about a method. @throws RangeError for an unknown one */
export function methodInfo(id: string): MethodInfo {
  const { summary, paper, options } = findMethod(id);
  const defaults = options.safeParse({});
  const values = defaults.success ? defaults.data : {};
  return { id, summary, paper, options: Object.fromEntries(Object.keys(options.shape).map((k) => [k, values[k]])) };
}

/**
 * Sets an adapter into a model: the backbone is frozen, the method's grafts are built and put beside its modules, and
 * the adapter becomes the active one. A call that fails leaves the model as it was.
 *
 * @param method id, or a declaration of your own made with `defineMethod`
 * @param options the method's options; unknown ones are refused
 * @param settings name, head, seed
 * @throws RangeError for an unknown method, a rule that matches no site (the message lists the sites there are), or
 *   sizes that do not fit; TypeError for unknown or wrong options
 *
 * ```ts
 * const adapter = graft(model, 'lora', { rank: 8 }, { head: { classes: 10 } });
 * ```
 */
export function graft<S extends z.ZodObject>(
  model: Host,
  method: string | Method<S>,
  options: z.input<S> | Record<string, unknown> = {},
  settings: GraftOptions = {},
): Adapter {
  return graftMethod(model, typeof method === 'string' ? findMethod(method) : method, options, settings);
}

/**
 * Sets the adapter of a folder into a model, which must hold the weights that it was trained beside.
 *
 * @param folder path, or what `readAdapterFolder` returned
 * @throws Error when the folder is damaged, or the backbone is another one (see `options.fingerprint`)
 */
export function loadAdapter(model: Host, folder: string | AdapterFolder, options: LoadAdapterOptions = {}): Adapter {
  const read = typeof folder === 'string' ? readAdapterFolder(folder) : folder;
  return graftFolder(model, read, findMethod(read.config.method), options);
}

/** The adapters of a model by name, in the order in which they came. */
export function adaptersOf(model: Host): ReadonlyMap<string, Adapter> {
  return AdapterHost.of<Adapter>(model).adapters;
}
