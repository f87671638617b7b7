import { PassThrough } from 'node:stream';
import { describe, expect, it } from 'vitest';
import type { TrainEvent } from '../../lib/train/events.js';
import { duration, progress } from '../../lib/train/progress.js';

const score = { loss: 0.5, accuracy: 0.75, samples: 64 };
const events: TrainEvent[] = [
  { type: 'start', epochs: 2, stepsPerEpoch: 4, step: 0, samples: 64, trainable: 10 },
  { type: 'step', epoch: 1, step: 2, steps: 8, ...score, lr: 0.1, imagesPerSecond: 321, secondsLeft: 83 },
  { type: 'validate', epoch: 1, batch: 1, batches: 2 },
  {
    type: 'epoch',
    epoch: 1,
    step: 4,
    lr: 0.1,
    train: score,
    val: { ...score, accuracy: 0.5 },
    isBest: true,
    seconds: 3,
  },
  { type: 'end', step: 4, interrupted: false },
];

function shown(isTTY: boolean, told = events): string {
  const stream = Object.assign(new PassThrough(), { isTTY, columns: 100 });
  if (isTTY) Object.assign(stream, { cursorTo: () => true, moveCursor: () => true, clearLine: () => true });
  const listen = progress({ stream: stream as unknown as NodeJS.WriteStream, label: 'lora' });
  for (const event of told) listen(event);
  return String(stream.read() ?? '');
}

describe('progress', () => {
  it('prints plain lines when the stream is not a terminal', () => {
    const text = shown(false);
    expect(text).toBe('lora  epoch 1/2  train loss 0.5000 acc 75.0%  val loss 0.5000 acc 50.0%  3.0s  best\n');
  });

  it('names the score of other tasks and leaves out what is not measured', () => {
    const unmeasured = { loss: NaN, accuracy: NaN, samples: 4 };
    const epoch = events.find((e) => e.type === 'epoch')!;
    const detected: TrainEvent[] = [
      events[0]!,
      { ...epoch, train: { ...unmeasured, loss: 0.5 }, val: { ...unmeasured, metrics: { AP: 0.25, AP50: 0.5 } } },
    ];
    expect(shown(false, detected)).toBe('lora  epoch 1/2  train loss 0.5000  val AP 25.0%  3.0s  best\n');
  });

  it('draws a bar with loss, accuracy, rate and time left in a terminal', () => {
    const text = shown(true);
    expect(text).toMatch(/lora\s+epoch 1\/2 █+░+ loss 0\.5000 {2}acc 75\.0% {2}321 img\/s {2}ETA 1m23s/);
    expect(text).toContain('validating');
    expect(text).toContain('epoch 1/2  train loss 0.5000');
  });

  it('writes durations for people', () => {
    expect([0.42, 9.96, 59, 83, 3600, 7290, NaN].map(duration)).toEqual([
      '0.4s',
      '10s',
      '59s',
      '1m23s',
      '1h00m',
      '2h01m',
      '?',
    ]);
  });
});
