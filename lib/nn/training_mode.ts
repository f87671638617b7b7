import { BatchNorm2d } from './layers/norm.js';
import type { Module } from './module.js';

/** Which parts of an adapted model train and which only serve. */
export interface TrainingModeOptions {
  /** `frozen` (default): every BatchNorm of the backbone stays in evaluation mode; `update`: batches move its statistics. */
  readonly bnStats?: 'frozen' | 'update';
  /** `eval`: the whole backbone stays in evaluation mode, without its dropout and stochastic depth. Default `train`. */
  readonly backbone?: 'train' | 'eval';
}

/** Puts a model with its grafts into training mode, but for those parts of the backbone that are to stay as they are. */
export function trainingMode(model: Module, options: TrainingModeOptions = {}): void {
  const { bnStats = 'frozen', backbone = 'train' } = options;
  model.train();
  const modules = model.namedModules().map(([, module]) => module);
  for (const module of modules) {
    if (backbone === 'eval' || (bnStats === 'frozen' && module instanceof BatchNorm2d)) module.training = false;
  }
}
