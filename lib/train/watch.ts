/** Keeps the losses of the last steps as tensors until someone looks, so that no step waits for a number. */
import { aten, scope, type Tensor } from '../tensor/index.js';

/** What is remembered of one batch. */
export interface Watched {
  /** Scalar, mean over the batch. */
  readonly loss: Tensor;
  /** Scalar, number of right predictions; null where the task does not count them. */
  readonly correct: Tensor | null;
  readonly step: number;
  readonly lr: number;
  readonly indices: readonly number[];
}

/** Sums over the batches since the last look. */
export interface Seen {
  /** Sum of the loss over the images of each batch, in order. */
  readonly lossSums: readonly number[];
  /** NaN where the task does not count them. */
  readonly correct: number;
  readonly samples: number;
  readonly seconds: number;
}

/** The loss is no longer a finite number. Names the first batch with such a loss, although it is noticed only at a look. */
export class NonFiniteLossError extends Error {
  override readonly name = 'NonFiniteLossError';

  constructor(
    /** NaN or an infinity. */
    readonly loss: number,
    /** Counted from 1. */
    readonly step: number,
    readonly lr: number,
    readonly indices: readonly number[],
    names: readonly string[],
  ) {
    const shown = names.slice(0, 8).join(', ') + (names.length > 8 ? `, … (${names.length} images)` : '');
    super(
      `the loss became ${loss} at step ${step} (learning rate ${Number(lr.toPrecision(6))}), batch: ${shown}. ` +
        'Lower the learning rate, clip the gradients (clip: 1) or look at these images; the last saved state is sound.',
    );
  }
}

export class LossWatch {
  private pending: Watched[] = [];
  private since = performance.now();
  private stepsTimed = 0;
  private secondsTimed = 0;

  constructor(private readonly describe: (index: number) => string) {}

  /** Forgets the time that has passed: validation and saving are not training time. */
  restart(): void {
    this.since = performance.now();
  }

  /** Takes over the tensors of `entry`. */
  add(entry: Watched): void {
    this.pending.push(entry);
  }

  /** Training time per optimizer step, over the run so far in this process. */
  secondsPerStep(): number {
    return this.stepsTimed === 0 ? 0 : this.secondsTimed / this.stepsTimed;
  }

  /** Reads and frees what is pending; null if there is nothing. Throws NonFiniteLossError. */
  read(): Seen | null {
    if (this.pending.length === 0) return null;
    const entries = this.pending;
    this.pending = [];
    const counted = entries.flatMap((e) => e.correct ?? []);
    const numbers = values([...entries.map((e) => e.loss), ...counted]);
    const losses = numbers.slice(0, entries.length);
    // One task, one kind of entries: either all count or none does.
    const rights = counted.length < entries.length ? entries.map(() => NaN) : numbers.slice(entries.length);
    const seconds = Math.max((performance.now() - this.since) / 1000, 1e-9);
    this.restart();
    this.secondsTimed += seconds;
    this.stepsTimed += new Set(entries.map((e) => e.step)).size;
    const lossSums: number[] = [];
    let correct = 0;
    let samples = 0;
    for (const [i, { step, lr, indices }] of entries.entries()) {
      const loss = losses[i]!;
      if (!Number.isFinite(loss)) throw new NonFiniteLossError(loss, step + 1, lr, indices, indices.map(this.describe));
      lossSums.push(loss * indices.length);
      correct += rights[i]!;
      samples += indices.length;
    }
    return { lossSums, correct, samples, seconds };
  }
}

/** The numbers in scalar tensors, in one transfer; frees the tensors. */
function values(scalars: readonly Tensor[]): number[] {
  const numbers = scope(() => aten.stack(scalars.map((t) => t.double())).tolist()) as number[];
  for (const tensor of scalars) tensor.dispose();
  return numbers;
}
