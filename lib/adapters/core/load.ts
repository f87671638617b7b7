/** Setting a saved adapter into a model, after checking that it is the right one. */
import type { Host } from '../../models/index.js';
import type { Adapter } from './adapter.js';
import { ownFingerprint } from './fingerprint.js';
import { loadAdapterState, type AdapterFolder } from './folder.js';
import { graftMethod, type GraftOptions } from './graft.js';
import type { Method } from './method.js';
import { warn } from './warn.js';

/** How `loadAdapter` treats what it finds. */
export interface LoadAdapterOptions extends Pick<GraftOptions, 'name' | 'activate'> {
  /** What to do when the backbone's weights are not those that the adapter was trained beside. Default `error`. */
  readonly fingerprint?: 'error' | 'warn' | 'ignore';
}

/** Sets the adapter of a folder into a model; see `loadAdapter` in `lib/adapters/registry.ts`. */
export function graftFolder(
  model: Host,
  folder: AdapterFolder,
  method: Method,
  options: LoadAdapterOptions = {},
): Adapter {
  checkBackbone(model, folder.config.backbone, folder.path, options.fingerprint ?? 'error');
  const { name = 'default', activate = 'only' } = options;
  const settings = { name, head: folder.config.head as NonNullable<GraftOptions['head']>, activate: 'no' } as const;
  const adapter = graftMethod(model, method, folder.config.options, settings);
  return filled(adapter, activate, () => loadAdapterState(adapter, folder.tensors, folder.path));
}

/** A new adapter once `fill` has set its tensors, active as asked; if that fails, it is out of the model again. */
export function filled(
  adapter: Adapter,
  activate: NonNullable<LoadAdapterOptions['activate']>,
  fill: () => void,
): Adapter {
  try {
    fill();
    if (activate === 'only') adapter.activate();
    if (activate === 'also') adapter.enable();
  } catch (error) {
    adapter.remove();
    throw error;
  }
  return adapter;
}

/** Compares a model with the backbone that an adapter was trained beside. @throws Error when they differ, in mode `error` */
export function checkBackbone(
  model: Host,
  backbone: { readonly name: string; readonly fingerprint: string },
  path: string,
  mode: 'error' | 'warn' | 'ignore',
): void {
  if (mode === 'ignore') return;
  const found = ownFingerprint(model);
  if (backbone.name === model.name && backbone.fingerprint === found) return;
  const reason =
    backbone.name === model.name
      ? `its weights are not those of this ${model.name} (another checkpoint, or none was loaded)`
      : `it was trained beside ${backbone.name}, and this is ${model.name}`;
  const message = `the adapter in ${path} belongs to another backbone: ${reason}`;
  if (mode === 'error')
    throw new Error(`${message}. Load the weights it was trained with, or pass fingerprint: 'warn'.`);
  warn('OTHER_BACKBONE', message);
}
