/** Progress for people: one bar per epoch in a terminal, plain lines anywhere else. */
import type * as CliProgress from 'cli-progress';
import { requirePackage } from '../native/packages.js';
import {
  headline,
  type EpochEvent,
  type Score,
  type StepEvent,
  type TrainEvent,
  type TrainListener,
} from './events.js';

const cliProgress = (): typeof CliProgress => requirePackage('cli-progress') as typeof CliProgress;

/** Where progress goes; standard error by default, so that standard output stays free for results. */
export interface ProgressOptions {
  readonly stream?: NodeJS.WriteStream;
  /** Printed before each line, e.g. the method when several are trained. */
  readonly label?: string;
}

/**
 * A listener for `new Trainer({ onEvent })` that shows loss, accuracy, images per second and the time left: a bar per
 * epoch in a terminal, a line per epoch (and one each ten seconds) when the stream is not a terminal.
 */
export function progress(o: ProgressOptions = {}): TrainListener {
  const stream = o.stream ?? process.stderr;
  const label = o.label === undefined ? '' : `${o.label}  `;
  return stream.isTTY ? bars(stream, label) : lines(stream, label);
}

/** `83s` as `1m23s`; hours above an hour. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return '?';
  const s = Math.round(seconds);
  if (s < 60) return seconds < 9.95 ? `${seconds.toFixed(1)}s` : `${s}s`;
  const two = (n: number): string => String(n).padStart(2, '0');
  return s < 3600
    ? `${Math.floor(s / 60)}m${two(s % 60)}s`
    : `${Math.floor(s / 3600)}h${two(Math.floor(s / 60) % 60)}m`;
}

/** 0.987 as `98.7%`. */
export const percent = (share: number, digits = 1): string => `${(100 * share).toFixed(digits)}%`;

const rate = (imagesPerSecond: number): string => `${imagesPerSecond.toFixed(imagesPerSecond < 10 ? 1 : 0)} img/s`;

/** Loss and score, as far as they are measured. */
function figures(score: Omit<Score, 'samples'>): string[] {
  const { name, value } = headline({ ...score, samples: 0 });
  return [
    ...(Number.isNaN(score.loss) ? [] : [`loss ${score.loss.toFixed(4)}`]),
    ...(Number.isNaN(value) ? [] : [`${name} ${percent(value)}`]),
  ];
}

function stepText(e: StepEvent): string {
  return [...figures(e), rate(e.imagesPerSecond), `ETA ${duration(e.secondsLeft)}`].join('  ');
}

function epochText(e: EpochEvent, epochs: number): string {
  const val = e.val === null ? '' : `  val ${figures(e.val).join(' ')}`;
  const train = `train ${figures(e.train).join(' ')}`;
  return `epoch ${e.epoch}/${epochs}  ${train}${val}  ${duration(e.seconds)}${e.isBest ? '  best' : ''}`;
}

function lines(stream: NodeJS.WriteStream, label: string): TrainListener {
  const secondsBetween = 10;
  let epochs = 0;
  let last = performance.now();
  return (e: TrainEvent) => {
    if (e.type === 'start') {
      epochs = e.epochs;
      if (e.step > 0) stream.write(`${label}resumed at step ${e.step}\n`);
    } else if (e.type === 'epoch') {
      last = performance.now();
      stream.write(`${label}${epochText(e, epochs)}\n`);
    } else if (e.type === 'step' && performance.now() - last > secondsBetween * 1000) {
      last = performance.now();
      stream.write(`${label}epoch ${e.epoch}/${epochs}  step ${e.step}/${e.steps}  ${stepText(e)}\n`);
    }
  };
}

function bars(stream: NodeJS.WriteStream, label: string): TrainListener {
  const { SingleBar } = cliProgress();
  const bar = new SingleBar({
    format: `${label}{title} {bar} {text}`,
    stream,
    barsize: 24,
    barCompleteChar: '█',
    barIncompleteChar: '░',
    hideCursor: true,
    clearOnComplete: true,
    autopadding: true,
    gracefulExit: false, // Ctrl-C belongs to the trainer, which saves first
  });
  let start = { epochs: 0, stepsPerEpoch: 1 };
  const show = (epoch: number, done: number, total: number, text: string): void => {
    const payload = { title: `epoch ${epoch}/${start.epochs}`, text };
    if (!bar.isActive) bar.start(total, done, payload);
    bar.setTotal(total);
    bar.update(done, payload);
  };
  return (e: TrainEvent) => {
    if (e.type === 'start') {
      start = e;
      if (e.step > 0) stream.write(`${label}resumed at step ${e.step}\n`);
    } else if (e.type === 'step') {
      show(e.epoch, e.step - (e.epoch - 1) * start.stepsPerEpoch, start.stepsPerEpoch, stepText(e));
    } else if (e.type === 'validate') {
      show(e.epoch, e.batch, e.batches, 'validating');
    } else if (e.type === 'epoch') {
      bar.stop();
      stream.write(`${label}${epochText(e, start.epochs)}\n`);
    } else if (e.type === 'end') {
      bar.stop();
    }
  };
}
