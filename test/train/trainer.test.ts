import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { memory, manualSeed, type Tensor } from '../../lib/tensor/index.js';
import { NonFiniteLossError, readJsonl, Trainer, type TrainEvent, type TrainerOptions } from '../../lib/train/index.js';
import { ColorData, tinyNet, type TinyNet } from './tiny.js';

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-trainer-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
let folders = 0;
const newFolder = (): string => join(folder, String(folders++));

function trainer(model: TinyNet, o: Partial<TrainerOptions> = {}): Trainer {
  const defaults = { train: new ColorData(48, 16), val: new ColorData(24, 16, { isFixed: true }), epochs: 4 };
  return new Trainer({ model, optimizer: { kind: 'adamw', lr: 0.05 }, ...defaults, ...o });
}

const numbers = (tensor: Tensor): number[] => Array.from(tensor.detach().reshape([-1]).data() as Float32Array);
const weights = (model: TinyNet): number[][] => [...model.stateDict().values()].map((t) => numbers(t.double()));

describe('a run', () => {
  it('learns, reports, and writes a line per epoch', async () => {
    const outDir = newFolder();
    const events: TrainEvent[] = [];
    const model = tinyNet();
    const result = await trainer(model, { outDir, logEvery: 2, onEvent: (e) => events.push(e) }).fit();

    expect(result.history).toHaveLength(4);
    expect(result.step).toBe(12);
    expect(result.interrupted).toBe(false);
    expect(result.history.at(-1)!.train.loss).toBeLessThan(result.history[0]!.train.loss / 2);
    expect(result.history.at(-1)!.val!.accuracy).toBeGreaterThan(0.9);
    expect(result.best!.val!.accuracy).toBe(Math.max(...result.history.map((r) => r.val!.accuracy)));

    const kinds = events.map((e) => e.type);
    expect(kinds[0]).toBe('start');
    expect(kinds.at(-1)).toBe('end');
    const steps = events.filter((e) => e.type === 'step').map((e) => e.step);
    expect(steps).toEqual([2, 3, 4, 6, 8, 9, 10, 12]); // every second, and the last of each epoch
    const log = readJsonl(join(outDir, 'log.jsonl'));
    expect(log.filter((r) => r['event'] === 'epoch')).toHaveLength(4);
    expect(log.filter((r) => r['event'] === 'step')).toHaveLength(steps.length);
    expect(readdirSync(outDir).sort()).toEqual(['best.safetensors', 'last.safetensors', 'log.jsonl']);
  });

  it('goes back to the best weights on request', async () => {
    const model = tinyNet();
    // A rate that destroys the network after the second epoch, so that best and last differ.
    const schedule = () => (step: number) => (step < 6 ? 0.05 : 20);
    const run = trainer(model, { optimizer: { kind: 'sgd', lr: 1, momentum: 0 }, schedule, epochs: 3 });
    const result = await run.fit();
    expect(result.best!.epoch).toBeLessThan(3);
    const last = weights(model);
    run.restoreBest();
    expect(weights(model)).not.toEqual(last);
    const again = tinyNet();
    await trainer(again, {
      optimizer: { kind: 'sgd', lr: 1, momentum: 0 },
      schedule: schedule,
      epochs: result.best!.epoch,
    }).fit();
    expect(weights(model)).toEqual(weights(again));
  });

  it('lets the event loop run between steps', async () => {
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    await trainer(tinyNet(), { epochs: 8 }).fit();
    clearInterval(timer);
    expect(ticks).toBeGreaterThan(3);
  });

  it('keeps the memory constant over 5,000 steps', async () => {
    const tensors: number[] = [];
    const resident: number[] = [];
    const onEvent = (e: TrainEvent): void => {
      if (e.type !== 'epoch') return;
      tensors.push(memory().tensors);
      resident.push(process.memoryUsage.rss());
    };
    await new Trainer({ model: tinyNet(), train: new ColorData(400, 4), epochs: 50, onEvent }).fit();
    // Handles that wait for the collector come and go; what leaks would grow by one or more each epoch.
    expect(tensors.at(-1)).toBeLessThan(tensors[1]! + 30);
    expect(resident.at(-1)! - resident[9]!).toBeLessThan(20e6);
  }, 180_000);

  it('refuses wrong options before it starts', () => {
    expect(() => trainer(tinyNet(), { epochs: 0 })).toThrow(/epochs must be a positive whole number, got 0/);
    expect(() => trainer(tinyNet(), { adaptor: null } as never)).toThrow(/unknown option 'adaptor'.*adapter/);
    expect(() => trainer(tinyNet(), { optimizer: { kind: 'adamw', rate: 1 } as never })).toThrow(
      /optimizer: unknown .*'rate'/,
    );
    expect(() => trainer(tinyNet(), { resume: true })).toThrow(/resume needs outDir/);
    expect(() => trainer(tinyNet().requiresGrad_(false))).toThrow(/no parameter requires a gradient/);
    expect(() => trainer(tinyNet(), { clip: -1 })).toThrow(/clip must be above 0/);
    expect(() => trainer(tinyNet(), { train: new ColorData(0, 4) })).toThrow(/train data has no batch/);
  });
});

describe('steps', () => {
  it('go at the rate of each parameter', async () => {
    const first = new Map(tinyNet().namedParameters());
    const [slow] = [...first.keys()] as [string];
    const moves = async (factor: number): Promise<(name: string) => Tensor> => {
      const model = tinyNet();
      const rateFactor = (name: string): number => (name === slow ? factor : 1);
      const optimizer = { kind: 'sgd', lr: 0.1, momentum: 0, weightDecay: 0, rateFactor } as const;
      await new Trainer({
        model,
        train: new ColorData(8, 8),
        epochs: 1,
        schedule: { kind: 'constant' },
        optimizer,
      }).fit();
      const after = new Map(model.namedParameters());
      return (name) => after.get(name)!.detach().sub(first.get(name)!.detach());
    };
    const [none, tenth, whole] = [await moves(0), await moves(0.1), await moves(1)];
    for (const name of first.keys()) {
      const expected = whole(name);
      expect(tenth(name).allclose(name === slow ? expected.mul(0.1) : expected, 1e-4, 1e-7)).toBe(true);
    }
    expect(none(slow).any().item()).toBe(false);
    expect(whole(slow).any().item()).toBe(true);
    expect(() => trainer(tinyNet(), { optimizer: { kind: 'sgd', lr: 1, rateFactor: () => NaN } })).toThrow(
      /rateFactor.*NaN/,
    );
  });

  it('accumulate to the same step as one large batch', async () => {
    // 40 images: batches of 16, 16, 8 against one of 40. SGD, so that weights are linear in the gradient.
    const o = { optimizer: { kind: 'sgd', lr: 0.1 }, epochs: 3 } as const;
    const large = tinyNet();
    const small = tinyNet();
    await new Trainer({ model: large, train: new ColorData(40, 40), ...o }).fit();
    await new Trainer({ model: small, train: new ColorData(40, 16), accumulate: 3, ...o }).fit();
    const [a, b] = [weights(large).flat(), weights(small).flat()];
    expect(a.reduce((most, v, i) => Math.max(most, Math.abs(v - b[i]!)), 0)).toBeLessThan(1e-5);
    const other = tinyNet();
    await new Trainer({ model: other, train: new ColorData(40, 16), ...o }).fit();
    expect(weights(other).flat()[0]).not.toBeCloseTo(a[0]!, 4);
  });

  it('leave frozen BatchNorm alone, and move it on request', async () => {
    const before = numbers(tinyNet().bn.running_mean!);
    const frozen = tinyNet();
    await trainer(frozen, { epochs: 1 }).fit();
    expect(numbers(frozen.bn.running_mean!)).toEqual(before);
    const moving = tinyNet();
    await trainer(moving, { epochs: 1, bnStats: 'update' }).fit();
    expect(numbers(moving.bn.running_mean!)).not.toEqual(before);
  });

  it('can be clipped, smoothed, and taken in bfloat16', async () => {
    const plain = tinyNet();
    await trainer(plain, { epochs: 1, optimizer: { kind: 'sgd', lr: 0.1 } }).fit();
    const variants: Partial<TrainerOptions>[] = [
      { clip: 0.01 },
      { loss: { labelSmoothing: 0.2 } },
      { autocast: 'bfloat16' },
    ];
    for (const variant of variants) {
      const other = tinyNet();
      const result = await trainer(other, { epochs: 1, optimizer: { kind: 'sgd', lr: 0.1 }, ...variant }).fit();
      expect(Number.isFinite(result.history[0]!.train.loss)).toBe(true);
      expect(weights(other)).not.toEqual(weights(plain));
    }
  });

  it('train only what requires a gradient', async () => {
    const model = tinyNet();
    model.conv.requiresGrad_(false);
    const before = numbers(model.conv.weight);
    const run = trainer(model, { epochs: 1 });
    expect(run.parameters.map(([name]) => name)).toEqual(['bn.weight', 'bn.bias', 'fc.weight', 'fc.bias']);
    await run.fit();
    expect(numbers(model.conv.weight)).toEqual(before);
  });

  it('stop at a loss that is not finite, naming step, learning rate and batch', async () => {
    const outDir = newFolder();
    const train = new ColorData(48, 16, { isFixed: true, spoiled: 20 }); // image 20 is in the second batch
    const run = trainer(tinyNet(), { train, outDir, schedule: { kind: 'constant' } });
    const error = await run.fit().then(
      () => null,
      (e: unknown) => e,
    );
    expect(error).toBeInstanceOf(NonFiniteLossError);
    const { step, lr, indices, message } = error as NonFiniteLossError;
    expect({ step, lr }).toEqual({ step: 2, lr: 0.05 });
    expect(indices).toContain(20);
    expect(message).toMatch(/became NaN at step 2 \(learning rate 0\.05\)/);
    expect(message).toContain('color_20.png'.slice(0, 6));
    expect(readdirSync(outDir)).toEqual(['log.jsonl']); // nothing spoiled was saved
  });
});

describe('resuming', () => {
  const o = { epochs: 4, bnStats: 'update', saveEvery: 2, logEvery: 1 } as const;

  /** Trains with dropout until `stopAfter` steps, then in a second trainer to the end. */
  async function interruptedAt(stopAfter: number, extra: Partial<TrainerOptions> = {}) {
    const outDir = newFolder();
    const abort = new AbortController();
    const onEvent = (e: TrainEvent): void => {
      if (e.type === 'step' && e.step === stopAfter) abort.abort();
    };
    const first = await trainer(tinyNet(0.3), { ...o, ...extra, outDir, signal: abort.signal, onEvent }).fit();
    const model = tinyNet(0.3);
    manualSeed(99); // whatever the new process did with the generator must not matter
    const second = await trainer(model, { ...o, ...extra, outDir, resume: true }).fit();
    return { first, second, model, outDir };
  }

  it.each([1, 2, 3, 5, 7, 12])('after step %i gives the same bits as a run without a break', async (stopAfter) => {
    const whole = tinyNet(0.3);
    const expected = await trainer(whole, o).fit();
    const { first, second, model, outDir } = await interruptedAt(stopAfter);
    expect(first).toMatchObject({ interrupted: true, step: stopAfter });
    expect(second.interrupted).toBe(false);
    expect(weights(model)).toEqual(weights(whole));
    expect(second.history).toEqual(expected.history);
    expect(second.best).toEqual(expected.best);
    const epochs = readJsonl(join(outDir, 'log.jsonl')).filter((r) => r['event'] === 'epoch');
    expect(epochs.map((r) => r['epoch'])).toEqual([1, 2, 3, 4]);
  });

  it.each(['sgd', 'adam'] as const)('brings back the state of %s', async (kind) => {
    const optimizer = { kind, lr: 0.05 };
    const whole = tinyNet(0.3);
    await trainer(whole, { ...o, optimizer }).fit();
    const { model } = await interruptedAt(4, { optimizer });
    expect(weights(model)).toEqual(weights(whole));
  });

  it('works in the middle of accumulated steps', async () => {
    const whole = tinyNet(0.3);
    await trainer(whole, { ...o, accumulate: 2 }).fit();
    const { model } = await interruptedAt(3, { accumulate: 2 });
    expect(weights(model)).toEqual(weights(whole));
  });

  it('refuses other settings and says which', async () => {
    const { outDir } = await interruptedAt(3);
    const other = trainer(tinyNet(0.3), { ...o, epochs: 9, seed: 5, outDir, resume: true });
    await expect(other.fit()).rejects.toThrow(/epochs was 4, is 9; seed was 0, is 5/);
  });

  it('refuses a file that is damaged, and never picks up a half-written one', async () => {
    const { outDir } = await interruptedAt(3);
    const path = join(outDir, 'last.safetensors');
    const bytes = readFileSync(path);
    writeFileSync(join(outDir, '.last.safetensors.1-aa.tmp'), bytes.subarray(0, 100)); // as a kill leaves it
    await expect(trainer(tinyNet(0.3), { ...o, outDir, resume: true }).fit()).resolves.toMatchObject({ step: 12 });
    expect(readdirSync(outDir).sort()).toEqual(['best.safetensors', 'last.safetensors', 'log.jsonl']);
    writeFileSync(path, bytes.subarray(0, bytes.length - 9));
    await expect(trainer(tinyNet(0.3), { ...o, outDir, resume: true }).fit()).rejects.toThrow(/last\.safetensors/);
  });

  it('begins anew when there is nothing to resume, or when not asked to', async () => {
    const outDir = newFolder();
    const fresh = await trainer(tinyNet(), { epochs: 1, outDir, resume: true }).fit();
    expect(fresh.step).toBe(3);
    const again = await trainer(tinyNet(), { epochs: 2, outDir }).fit();
    expect(again.history).toHaveLength(2);
    expect(readJsonl(join(outDir, 'log.jsonl')).filter((r) => r['event'] === 'epoch')).toHaveLength(2);
  });
});
