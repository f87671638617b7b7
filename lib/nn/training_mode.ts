import { BatchNorm2d } from './layers/norm.js';
import type { Module } from './module.js';

/** Which parts of an adapted model train and which only serve. */
export interface TrainingModeOptions {
  /** `frozen` (default): every BatchNorm of the backbone stays in evaluation mode; `update`: batches move its statistics. */
  readonly bnStats?: 'frozen' | 'update';
  /** `eval`: the whole backbone stays in evaluation mode, without its dropout and stochastic depth. Default `train`. */
  readonly backbone?: 'train' | 'eval';
  /** Whether the module at a path is no part of the backbone: it trains. Default: none. */
  readonly isHead?: (path: string) => boolean;
}

/** Puts a model with its grafts into training mode, but for those parts of the backbone that are to stay as they are. */
export function trainingMode(model: Module, options: TrainingModeOptions = {}): void {
  const { bnStats = 'frozen', backbone = 'train', isHead = () => false } = options;
  model.train();
  for (const [path, module] of model.namedModules()) {
    if (isHead(path)) continue;
    if (backbone === 'eval' || (bnStats === 'frozen' && module instanceof BatchNorm2d)) module.training = false;
  }
}
