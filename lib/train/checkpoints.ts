/** The weights of a run outside of the model: its state on disk (`last`), and the best epoch's weights (`best`). */
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { readSafetensors, writeSafetensors } from '../checkpoint/index.js';
import type { Module, Parameter } from '../nn/index.js';
import { noGrad, scope, type Device, type Tensor } from '../tensor/index.js';
import type { Trainable } from './options.js';
import type { ScaledOptimizer } from './recipe.js';
import {
  ofKind,
  readRunState,
  removeHalfWritten,
  restoreInPlace,
  restoreRng,
  rngStates,
  under,
  writeRunState,
  type Progress,
} from './run_state.js';

/** What is saved and restored. */
export interface Trained {
  readonly model: Module;
  readonly adapter: Trainable | undefined;
  readonly parameters: readonly (readonly [string, Parameter])[];
  readonly optimizer: ScaledOptimizer['optimizer'];
  readonly device: Device;
}

export class Checkpoints {
  private readonly last: string | null;
  private readonly best: string | null;
  /** Best weights of a run that writes no files. */
  private bestInMemory: ReadonlyMap<string, Tensor> | null = null;

  constructor(
    private readonly trained: Trained,
    private readonly outDir: string | undefined,
  ) {
    this.last = outDir === undefined ? null : join(outDir, 'last.safetensors');
    this.best = outDir === undefined ? null : join(outDir, 'best.safetensors');
  }

  /** Makes the folder ready for a run; one that begins anew drops the files of the one before it. */
  open(): void {
    if (this.outDir === undefined) return;
    mkdirSync(this.outDir, { recursive: true });
    removeHalfWritten(this.outDir);
  }

  clear(): void {
    for (const path of [this.last, this.best]) if (path !== null) rmSync(path, { force: true });
  }

  /** Writes the state of the run; returns its path, or null for a run that writes no files. */
  save(progress: Omit<Progress, 'optimizer'>): string | null {
    if (this.last === null) return null;
    const { tensors, ...optimizer } = this.trained.optimizer.stateDict();
    const rest = [...under('optimizer', tensors), ...under('rng', rngStates(this.trained.device))];
    writeRunState(this.last, { ...progress, optimizer }, [...this.weights(), ...rest]);
    return this.last;
  }

  /** Puts the saved state back everywhere and returns where the run stood; null if there is none. */
  restore(settings: Progress['settings']): Progress | null {
    const saved = this.last === null ? null : readRunState(this.last, settings);
    if (saved === null) return null;
    const { progress, tensors } = saved;
    this.restoreWeights(tensors);
    this.trained.optimizer.loadStateDict({ ...progress.optimizer, tensors: ofKind('optimizer', tensors) });
    restoreRng(ofKind('rng', tensors));
    return progress;
  }

  /** Keeps the present weights as the best. */
  saveBest(): void {
    if (this.best !== null) {
      writeSafetensors(this.best, this.weights());
      return;
    }
    for (const tensor of this.bestInMemory?.values() ?? []) tensor.dispose();
    const copy = (): Map<string, Tensor> => new Map(this.weights().map(([name, t]) => [name, t.detach().clone()]));
    this.bestInMemory = scope(() => noGrad(copy));
  }

  /** Puts the best weights back into the model. */
  restoreBest(): void {
    const onDisk = this.best !== null && existsSync(this.best) ? readSafetensors(this.best).tensors : null;
    const tensors = onDisk ?? this.bestInMemory;
    if (tensors === null) throw new Error('no best weights yet: no epoch of this run has ended');
    this.restoreWeights(tensors);
  }

  /** Everything that training changes in the model. */
  private weights(): [string, Tensor][] {
    return [...under('param', this.trained.parameters), ...under('buffer', this.buffers())];
  }

  private buffers(): [string, Tensor][] {
    const { model, adapter } = this.trained;
    const own = adapter?.namedBuffers?.() ?? [];
    return [...model.namedBuffers(), ...own.map(([name, b]): [string, Tensor] => [`adapter.${name}`, b])];
  }

  private restoreWeights(tensors: ReadonlyMap<string, Tensor>): void {
    restoreInPlace('param', this.trained.parameters, ofKind('param', tensors));
    restoreInPlace('buffer', this.buffers(), ofKind('buffer', tensors));
  }
}
