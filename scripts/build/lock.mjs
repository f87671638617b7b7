/** A lock between processes: a file that its holder touches while it lives. */
import { readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';

const heartbeatMs = 2_000;
/** A holder on another machine (a shared home) is believed dead after this long without a touch. */
const silentMs = 60_000;

/**
 * @param {string} file
 * @returns {{ pid: number, host: string } | null} null when the lock is gone or not written yet
 */
function holderOf(file) {
  try {
    const { pid, host } = JSON.parse(readFileSync(file, 'utf8'));
    return typeof pid === 'number' && typeof host === 'string' ? { pid, host } : null;
  } catch {
    return null;
  }
}

/**
 * Whether a process of this machine runs.
 * @param {number} pid
 */
export function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it lives, but belongs to someone else.
    return /** @type {NodeJS.ErrnoException} */ (error).code === 'EPERM';
  }
}

/** @param {string} file */
function isStale(file) {
  try {
    const silence = Date.now() - statSync(file).mtimeMs;
    const holder = holderOf(file);
    if (holder !== null && holder.host === hostname()) return !isAlive(holder.pid);
    return silence > silentMs;
  } catch {
    return false; // released in this moment: the next attempt takes it
  }
}

/**
 * Runs `work` while holding the lock `file`, after waiting for whoever holds it; `onWait` is called once with the holder's
 * process id. A lock whose holder died is taken over. Two waiters may take over the same dead lock at the same time, so
 * `work` must stay correct, if wasteful, when run twice at once: it ends with an atomic rename.
 * @template T
 * @param {string} file
 * @param {(pid: number | null) => void} onWait
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function withLock(file, onWait, work) {
  const me = JSON.stringify({ pid: process.pid, host: hostname() });
  for (let told = false; ; ) {
    try {
      writeFileSync(file, me, { flag: 'wx' });
      break;
    } catch (error) {
      if (/** @type {NodeJS.ErrnoException} */ (error).code !== 'EEXIST') throw error;
    }
    if (isStale(file)) {
      rmSync(file, { force: true });
      continue;
    }
    if (!told) onWait(holderOf(file)?.pid ?? null);
    told = true;
    await sleep(250);
  }
  const heartbeat = setInterval(() => {
    try {
      utimesSync(file, new Date(), new Date());
    } catch {
      // Taken over after a long suspension: the work's own rename decides who wins.
    }
  }, heartbeatMs);
  try {
    return await work();
  } finally {
    clearInterval(heartbeat);
    if (holderOf(file)?.pid === process.pid) rmSync(file, { force: true });
  }
}
