/** Timing and memory of this process. */
import { readFileSync } from 'node:fs';

/** Largest resident set of this process in bytes. (On Linux the maxRSS of getrusage survives exec, so it may be the parent's.) */
export function peakRss() {
  try {
    const match = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'latin1'));
    if (match) return Number(match[1]) * 1024;
  } catch {
    // Not Linux.
  }
  return process.resourceUsage().maxRSS * 1024;
}

/** The middle of sorted values. @param {readonly number[]} values */
export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/**
 * Median wall and processor seconds per call of `step`, after a few calls that do not count. On a busy machine and one
 * thread the processor's seconds are the better measure.
 * @param {() => unknown} step
 * @param {{ warmup: number, steps: number }} options
 */
export function timed(step, { warmup, steps }) {
  for (let i = 0; i < warmup; i++) step();
  const seconds = [];
  const cpu = [];
  for (let i = 0; i < steps; i++) {
    const before = process.cpuUsage();
    const start = performance.now();
    step();
    seconds.push((performance.now() - start) / 1000);
    const { user, system } = process.cpuUsage(before);
    cpu.push((user + system) / 1e6);
  }
  return { seconds: median(seconds), cpu: median(cpu) };
}
