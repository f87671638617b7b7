/**
 * The training loop: forward, backward, step; a score and a saved state now and then.
 *
 * Read `fit` first. Everything a run needs to go on exactly where it stopped (weights, buffers, optimizer, random
 * generators, place in the data, scores) is in one file, see checkpoints.ts.
 */
import { join } from 'node:path';
import { setImmediate as breathe } from 'node:timers/promises';
import { DenseModel } from '../heads/index.js';
import { type Parameter, trainingMode } from '../nn/index.js';
import { assertOptions } from '../tensor/check.js';
import { manualSeed, scope, type Device } from '../tensor/index.js';
import { Checkpoints } from './checkpoints.js';
import { evaluate } from './evaluate.js';
import { headline, type EpochRecord, type Score, type TrainEvent } from './events.js';
import { JsonlLog } from './log.js';
import { clipGradNorm } from './optim.js';
import { TRAINER_OPTIONS, type TaskBatch, type Batch, type BatchSource, type TrainerOptions } from './options.js';
import { describeRecipe, learningRates, makeOptimizer, type ScaledOptimizer } from './recipe.js';
import type { Position, Sums } from './run_state.js';
import { classifyTask } from './tasks/classify.js';
import { maybeAutocast, type Task } from './tasks/task.js';
import { LossWatch } from './watch.js';

/** How a run ended. */
export interface FitResult {
  /** All epochs, those before a resumption included. */
  readonly history: readonly EpochRecord[];
  /** The epoch with the best validation accuracy, or what the task has in its place (training loss without validation); null before the first epoch ended. */
  readonly best: EpochRecord | null;
  readonly step: number;
  /** True if `signal` ended the run early; its state is saved. */
  readonly interrupted: boolean;
  /** Time spent in this process. */
  readonly seconds: number;
}

/**
 * Trains a model, or the adapter grafted into it: to classify images, or for another `task`.
 *
 * @example
 * const adapter = graft(model, 'conv_adapter', { reduction: 4 }, { head: { classes: 10 } });
 * const result = await new Trainer({ model, adapter, train, val, epochs: 10, onEvent: progress() }).fit();
 */
export class Trainer<B extends TaskBatch = Batch> {
  readonly parameters: [string, Parameter][];
  private readonly o: TrainerOptions<B>;
  private readonly task: Task<B>;
  private readonly optimizer: ScaledOptimizer['optimizer'];
  private readonly setRate: ScaledOptimizer['setRate'];
  private readonly stepsPerEpoch: number;
  private readonly steps: number;
  private readonly learningRate: (step: number) => number;
  private readonly log: JsonlLog | null;
  private readonly device: Device;
  private readonly watch: LossWatch;
  private readonly checkpoints: Checkpoints;
  private position: Position = { epoch: 0, batch: 0, step: 0 };
  private sums: Sums = { loss: 0, correct: 0, samples: 0 };
  private history: EpochRecord[] = [];
  private validationSeconds = 0;

  constructor(options: TrainerOptions<B>) {
    this.o = options;
    check(options);
    // Without a task, B is what classification reads.
    this.task = options.task ?? (classifyTask(options.loss) as unknown as Task<B>);
    const named = options.adapter?.namedParameters() ?? options.model.namedParameters();
    this.parameters = named.filter(([, p]) => p.requiresGrad);
    if (this.parameters.length === 0)
      throw new RangeError(
        'nothing to train: no parameter requires a gradient (graft an adapter, or call requiresGrad_)',
      );
    this.device = this.parameters[0]![1].device;
    ({ optimizer: this.optimizer, setRate: this.setRate } = makeOptimizer(this.parameters, options.optimizer));
    this.stepsPerEpoch = Math.ceil(options.train.length / (options.accumulate ?? 1));
    this.steps = options.epochs * this.stepsPerEpoch;
    const { epochs, optimizer, schedule } = options;
    const { stepsPerEpoch, steps } = this;
    this.learningRate = learningRates({ epochs, stepsPerEpoch, steps }, optimizer, schedule);
    this.log = options.outDir === undefined ? null : new JsonlLog(join(options.outDir, 'log.jsonl'));
    this.watch = new LossWatch((index) => options.train.describe?.(index) ?? `image ${index}`);
    const { parameters, device } = this;
    const trained = { model: options.model, adapter: options.adapter, parameters, optimizer: this.optimizer, device };
    this.checkpoints = new Checkpoints(trained, options.outDir);
  }

  /** Runs the epochs. Rejects if the loss stops being finite, with the step, learning rate and batch in the message. */
  async fit(): Promise<FitResult> {
    const { train, epochs, accumulate = 1, logEvery = 10, saveEvery = null, signal } = this.o;
    const begin = performance.now();
    this.begin();

    while (this.position.epoch < epochs) {
      const epochBegin = performance.now();
      this.setModes();
      this.watch.restart();
      for await (const batches of groups(train.epoch(this.position.epoch, this.position.batch), accumulate)) {
        const lr = this.learningRate(this.position.step);
        this.trainStep(batches, lr);
        this.advance(batches);
        if (this.position.step % logEvery === 0) this.look(lr);
        if (saveEvery !== null && this.position.step % saveEvery === 0) this.save(lr);
        await breathe(); // timers, signals and prefetching get their turn
        if (signal?.aborted) return this.interrupted(lr, begin);
      }
      const lr = this.learningRate(this.position.step - 1);
      this.look(lr);
      const val = await this.validate();
      if (val === 'aborted') return this.interrupted(lr, begin);
      this.endEpoch(
        { epoch: this.position.epoch + 1, step: this.position.step, lr, train: mean(this.sums), val },
        epochBegin,
      );
    }
    return this.end(false, begin);
  }

  /** Puts the weights and buffers of the best epoch into the model. */
  restoreBest(): void {
    this.checkpoints.restoreBest();
  }

  /** One optimizer step over one or more batches. */
  private trainStep(batches: readonly B[], lr: number): void {
    const { model, clip = null, autocast = null } = this.o;
    const total = batches.reduce((sum, batch) => sum + batch.indices.length, 0);
    for (const batch of batches) {
      const [loss, correct] = scope(() => {
        const { loss, correct } = maybeAutocast(autocast, this.device, () => this.task.step(model, batch, this.device));
        const share = batch.indices.length / total; // so that accumulated batches weigh as in one large batch
        (share === 1 ? loss : loss.mul(share)).backward();
        return [loss.detach(), correct] as const;
      });
      this.watch.add({ loss, correct, step: this.position.step, lr, indices: batch.indices });
      this.task.free(batch);
    }
    scope(() => {
      if (clip !== null)
        clipGradNorm(
          this.parameters.map(([, p]) => p),
          clip,
        );
      this.setRate(lr);
      this.optimizer.step();
      this.optimizer.zeroGrad();
    });
  }

  private setModes(): void {
    const { model, bnStats = 'frozen', backboneMode = 'train' } = this.o;
    // Heads around a frozen backbone are what is trained, their norms and dropout included.
    const head = model instanceof DenseModel ? { isHead: (path: string) => model.isInClassifier(path) } : {};
    trainingMode(model, { bnStats, backbone: backboneMode, ...head });
  }

  private advance(batches: readonly B[]): void {
    const { epoch, batch, step } = this.position;
    const last = batches.at(-1)?.index ?? batch + batches.length - 1;
    this.position = { epoch, batch: last + 1, step: step + 1 };
  }

  /** Reads the losses since the last look: adds them up, reports them, and stops the run if one is not finite. */
  private look(lr: number): void {
    const seen = this.watch.read();
    if (seen === null) return;
    // One by one, so that the sum does not depend on when one looked: a resumed run reports the same numbers.
    for (const sum of seen.lossSums) this.sums.loss += sum;
    this.sums.correct += seen.correct;
    this.sums.samples += seen.samples;
    const { epoch, step } = this.position;
    const stepsLeft = this.steps - step;
    const epochsLeft = this.o.epochs - epoch;
    const event: TrainEvent = {
      type: 'step',
      epoch: epoch + 1,
      step,
      steps: this.steps,
      loss: seen.lossSums.reduce((a, b) => a + b, 0) / seen.samples,
      accuracy: seen.correct / seen.samples,
      lr,
      imagesPerSecond: seen.samples / seen.seconds,
      secondsLeft: stepsLeft * this.watch.secondsPerStep() + epochsLeft * this.validationSeconds,
    };
    this.emit(event);
    this.log?.write({
      event: 'step',
      epoch: epoch + 1,
      step,
      loss: event.loss,
      accuracy: event.accuracy,
      lr,
      imagesPerSecond: Math.round(event.imagesPerSecond),
    });
  }

  private async validate(): Promise<Score | null | 'aborted'> {
    const { model, val, autocast = null, signal } = this.o;
    if (val === undefined) return null;
    const epoch = this.position.epoch + 1;
    const begin = performance.now();
    try {
      const { loss, accuracy, samples, metrics } = await evaluate(model, val, {
        task: this.task,
        autocast,
        ...(signal === undefined ? {} : { signal }),
        onBatch: (batch, batches) => this.emit({ type: 'validate', epoch, batch, batches }),
      });
      this.validationSeconds = (performance.now() - begin) / 1000;
      return { loss, accuracy, samples, ...(metrics && { metrics }) };
    } catch (error) {
      if (signal?.aborted && error === signal.reason) return 'aborted';
      throw error;
    }
  }

  private endEpoch(record: EpochRecord, begin: number): void {
    const isBest = isBetter(record, bestOf(this.history));
    this.history.push(record);
    this.position = { epoch: this.position.epoch + 1, batch: 0, step: this.position.step };
    this.sums = { loss: 0, correct: 0, samples: 0 };
    this.log?.write({ event: 'epoch', ...record, isBest });
    // Best before last: a state must never speak of best weights that are not on the disk.
    if (isBest) this.checkpoints.saveBest();
    this.save(record.lr);
    this.emit({ type: 'epoch', ...record, isBest, seconds: (performance.now() - begin) / 1000 });
  }

  // ---- the state of the run -----------------------------------------------------------------------------------------

  private begin(): void {
    const { resume = false, seed = 0, epochs, train } = this.o;
    this.checkpoints.open();
    const saved = resume ? this.checkpoints.restore(this.settings()) : null;
    if (saved === null) {
      this.checkpoints.clear();
      this.log?.open();
      this.log?.write({ event: 'start', ...this.settings() });
      manualSeed(seed);
    } else {
      this.position = saved.position;
      this.sums = { ...saved.sums };
      this.history = [...saved.history];
      this.log?.open(saved.logLength);
    }
    const trainable = this.parameters.reduce((sum, [, p]) => sum + p.numel(), 0);
    const { stepsPerEpoch } = this;
    this.emit({ type: 'start', epochs, stepsPerEpoch, step: this.position.step, samples: train.samples, trainable });
  }

  private save(lr: number): void {
    this.look(lr); // a loss that is not finite must stop the run before its weights reach the disk
    const { position, sums, history } = this;
    const logLength = this.log?.length() ?? 0;
    const path = this.checkpoints.save({ position, sums, history, logLength, settings: this.settings() });
    if (path !== null) this.emit({ type: 'save', path, step: position.step });
  }

  /** What must be the same when a run is resumed. */
  private settings(): Record<string, unknown> {
    const { o } = this;
    return {
      epochs: o.epochs,
      samples: o.train.samples,
      batches: o.train.length,
      accumulate: o.accumulate ?? 1,
      seed: o.seed ?? 0,
      clip: o.clip ?? null,
      autocast: o.autocast ?? null,
      bnStats: o.bnStats ?? 'frozen',
      backboneMode: o.backboneMode ?? 'train',
      ...describeRecipe(o.optimizer, o.schedule),
      ...this.task.settings,
      device: this.device,
    };
  }

  private interrupted(lr: number, begin: number): FitResult {
    this.save(lr);
    return this.end(true, begin);
  }

  private end(interrupted: boolean, begin: number): FitResult {
    const { step } = this.position;
    this.emit({ type: 'end', step, interrupted });
    return {
      history: this.history,
      best: bestOf(this.history),
      step,
      interrupted,
      seconds: (performance.now() - begin) / 1000,
    };
  }

  private emit(event: TrainEvent): void {
    this.o.onEvent?.(event);
  }
}

const mean = ({ loss, correct, samples }: Sums): Score => ({
  loss: loss / samples,
  accuracy: correct / samples,
  samples,
});

/** Higher validation accuracy, or what the task has in its place, then lower validation loss; without validation lower training loss. */
function isBetter(a: EpochRecord, b: EpochRecord | null): boolean {
  if (b === null) return true;
  if (a.val === null || b.val === null) return a.train.loss < b.train.loss;
  const [mine, theirs] = [headline(a.val).value, headline(b.val).value];
  return mine > theirs || (mine === theirs && a.val.loss < b.val.loss);
}

function bestOf(history: readonly EpochRecord[]): EpochRecord | null {
  return history.reduce<EpochRecord | null>((best, record) => (isBetter(record, best) ? record : best), null);
}

/** `size` batches at a time; the last group of an epoch may be smaller. */
async function* groups<B>(batches: AsyncIterable<B>, size: number): AsyncGenerator<B[]> {
  let group: B[] = [];
  for await (const batch of batches) {
    group.push(batch);
    if (group.length < size) continue;
    yield group;
    group = [];
  }
  if (group.length > 0) yield group;
}

function check<B extends TaskBatch>(o: TrainerOptions<B>): void {
  assertOptions(o, 'Trainer', TRAINER_OPTIONS);
  const positive = (name: string, value: number | null | undefined): void => {
    if (value !== undefined && value !== null && (!Number.isInteger(value) || value < 1))
      throw new RangeError(`Trainer: ${name} must be a positive whole number, got ${value}`);
  };
  positive('epochs', o.epochs);
  positive('accumulate', o.accumulate);
  positive('saveEvery', o.saveEvery);
  positive('logEvery', o.logEvery);
  if (o.clip !== undefined && o.clip !== null && !(o.clip > 0))
    throw new RangeError(`Trainer: clip must be above 0, got ${o.clip}`);
  const empty = (name: string, data: BatchSource<B> | undefined): void => {
    if (data !== undefined && data.length < 1) throw new RangeError(`Trainer: the ${name} data has no batch`);
  };
  empty('train', o.train);
  empty('val', o.val);
  if (o.task !== undefined && o.loss !== undefined)
    throw new TypeError('Trainer: loss belongs to classification; give the loss to the task');
  if (o.resume === true && o.outDir === undefined)
    throw new TypeError('Trainer: resume needs outDir, the folder of the run to go on with');
}
