/**
 * `npm run bench -- [--filter TEXT] [--rounds N] [--threads N] [--compile] [--json]`: our side against PyTorch, row by
 * row, every measurement in a fresh process, the two sides in turn. See README.md.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, totalmem } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { median } from './measure.mjs';
import { rows } from './rows.mjs';

const here = fileURLToPath(new URL('.', import.meta.url));

/** @type {{ values: Record<string, any> }} */
const { values: flags } = parseArgs({
  options: {
    filter: { type: 'string', default: '' },
    rounds: { type: 'string', default: '3' },
    threads: { type: 'string', default: String(availableParallelism()) },
    compile: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
if (flags.help) {
  console.log('npm run bench -- [--filter TEXT[,TEXT]] [--rounds N] [--threads N] [--compile] [--json]');
  process.exit(0);
}
const rounds = positive('rounds');
const threads = positive('threads');
const log = flags.json ? () => undefined : console.log;
const python = process.env.TORCHGRAFT_BENCH_PYTHON ?? 'python3';
const environment = {
  ...process.env,
  OMP_NUM_THREADS: String(threads),
  MKL_NUM_THREADS: String(threads),
  PYTHONDONTWRITEBYTECODE: '1',
};

/** @param {string} name */
function positive(name) {
  const value = Number(flags[name]);
  if (Number.isInteger(value) && value > 0) return value;
  console.error(`bench: --${name} must be a positive integer, got '${flags[name]}'`);
  process.exit(2);
}

/** Runs one measurement. @param {string} command @param {string[]} args @returns {Record<string, any>} */
function measure(command, args) {
  const start = performance.now();
  const done = spawnSync(command, args, { encoding: 'utf8', env: environment, maxBuffer: 1 << 26 });
  const wall = (performance.now() - start) / 1000;
  const line = done.stdout?.split('\n').find((text) => text.startsWith('RESULT '));
  if (done.status !== 0 || line === undefined) {
    const why = done.error?.message ?? done.stderr.trim().split('\n').at(-1);
    throw new Error(`${command} ${args.join(' ')}\n  ${why}`);
  }
  return { ...JSON.parse(line.slice('RESULT '.length)), wall };
}

/** @param {import('./rows.mjs').Row | { file: string, id: string, options: object }} row */
const ours = (row) => {
  const options = {
    ...row.options,
    row: row.id.replace(/_b\d+$/, ''),
    file: row.file,
    layout: row.layout ?? 'nchw',
    threads,
  };
  return measure(process.execPath, [`${here}worker.mjs`, row.file, JSON.stringify(options)]);
};

/** @param {string} peer @param {object} options */
const theirs = (peer, options) =>
  measure(python, [`${here}python/worker.py`, peer, JSON.stringify({ ...options, threads })]);

/** The side that ours is compared with. @param {import('./rows.mjs').Row} row @param {string} layout */
const other = (row, layout) =>
  row.peer === undefined
    ? ours({ ...row, layout, options: { ...row.options, ...row.against } })
    : theirs(row.peer, { ...row.options, layout });

/** What must be there before anything is measured. */
function prepare() {
  if (!existsSync(`${here}../../dist/torchgraft.js`)) {
    throw new Error('there is no dist/: run `npm run build` first (`npm run bench` does)');
  }
  const found = spawnSync(python, ['-c', 'import torch; print(torch.__version__)'], { encoding: 'utf8' });
  if (found.status !== 0) {
    throw new Error(
      `the peer needs Python with PyTorch, and '${python}' ${found.error ? 'is not there' : 'cannot import torch'}. Install it with\n` +
        '  python3 -m venv .venv && .venv/bin/pip install torch==2.13.0 numpy\n' +
        'and name that Python: TORCHGRAFT_BENCH_PYTHON=.venv/bin/python npm run bench',
    );
  }
}

function machine() {
  const mine = ours({ id: 'info', file: 'info', options: {} });
  const peer = theirs('info', {});
  const governor = '/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor';
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: availableParallelism(),
    memory: totalmem(),
    load: loadavg().map((n) => Number(n.toFixed(2))),
    governor: existsSync(governor) ? readFileSync(governor, 'utf8').trim() : null,
    threads,
    rounds,
    node: process.version,
    ours: { torch: mine.torch, flopsPerSecond: mine.flopsPerSecond },
    peer: { torch: peer.torch, python: peer.python, capability: peer.cpu, flopsPerSecond: peer.flops_per_second },
    // The machine's peak is what either side reaches, so that no share exceeds what the other could have.
    peak: Math.max(mine.flopsPerSecond, peer.flops_per_second),
  };
}

/** Medians of both sides and their ratios. @param {import('./rows.mjs').Row} row @param {number} peak */
function run(row, peak) {
  const time = (/** @type {Record<string, any>} */ result) => (row.whole ? result.wall : result.seconds);
  const memory = (/** @type {Record<string, any>} */ result) => (row.stepMemory ? result.grown : result.rss);
  const mine = [];
  /** @type {Record<string, Record<string, any>[]>} */
  const peers = Object.fromEntries(row.layouts.map((layout) => [layout, []]));
  const before = loadavg()[0];
  for (let round = 0; round < rounds; round++) {
    // Who goes first alternates, so that a drift of the machine favors neither.
    const sides = [
      () => mine.push(ours(row)),
      ...row.layouts.map((layout) => () => peers[layout].push(other(row, layout))),
    ];
    for (const side of round % 2 === 0 ? sides : sides.reverse()) side();
  }
  const each = row.layouts.map((layout) => ({
    layout,
    seconds: median(peers[layout].map(time)),
    rss: median(peers[layout].map(memory)),
    trainable: peers[layout][0].trainable,
  }));
  const seconds = median(mine.map(time));
  const rss = median(mine.map(memory));
  const fastest = each.reduce((a, b) => (b.seconds < a.seconds ? b : a));
  const smallest = each.reduce((a, b) => (b.rss < a.rss ? b : a));
  if (mine[0].trainable !== fastest.trainable) {
    throw new Error(
      `${row.id}: the two sides train ${mine[0].trainable} and ${fastest.trainable} numbers; they must do the same work`,
    );
  }
  const flops =
    row.peer && row.options.batch ? theirs(row.peer, { ...row.options, layout: 'nchw', flops: true }).flops : null;
  return {
    id: row.id,
    title: row.title,
    load: before,
    ours: { seconds, rss, shareOfPeak: flops && flops / seconds / peak, all: mine.map(time) },
    peer: {
      seconds: fastest.seconds,
      layout: fastest.layout,
      rss: smallest.rss,
      rssLayout: smallest.layout,
      shareOfPeak: flops && flops / fastest.seconds / peak,
      layouts: each,
      all: peers[fastest.layout].map(time),
      compiled: flags.compile && row.peer && row.options.batch ? compiled(row, fastest.layout) : undefined,
    },
    flops,
    timeRatio: seconds / fastest.seconds,
    memoryRatio: rss / smallest.rss,
  };
}

/** torch.compile's seconds, for information. @param {import('./rows.mjs').Row} row @param {string} layout */
function compiled(row, layout) {
  try {
    return theirs(row.peer, { ...row.options, layout, compile: true }).seconds;
  } catch (error) {
    return `no figure: ${String(error.message).split('\n').at(-1)?.trim()}`;
  }
}

/** @param {number} s */
const duration = (s) =>
  s >= 1 ? `${s.toFixed(2)} s` : s >= 1e-3 ? `${(s * 1e3).toFixed(1)} ms` : `${(s * 1e6).toFixed(2)} us`;
/** @param {number | null} share */
const percent = (share) => (share ? `${Math.round(share * 100)}%` : '');
/** @param {number} bytes */
const mega = (bytes) => `${Math.round(bytes / 2 ** 20)} MB`;

try {
  prepare();
  const state = machine();
  log(
    `${state.cpu}, ${state.cores} cores, ${mega(state.memory)}; load ${state.load.join(' ')}; ${state.threads} threads, ${rounds} rounds`,
  );
  log(
    `ours: Node ${state.node}, LibTorch ${state.ours.torch}; peer: Python ${state.peer.python}, PyTorch ${state.peer.torch} (${state.peer.capability})`,
  );
  log(
    `matrix product, float32: ${[state.ours, state.peer].map((s) => `${Math.round(s.flopsPerSecond / 1e9)} GFLOP/s`).join(' ours, ')} peer`,
  );
  if (state.ours.torch.split('+')[0] !== state.peer.torch.split('+')[0])
    log('WARNING: the two sides have different versions of LibTorch');
  if (state.load[0] > 0.5) log('WARNING: the machine is busy; the ratios will scatter');
  const wanted = String(flags.filter).split(',');
  const chosen = rows.filter(({ id }) => wanted.some((text) => id.includes(text)));
  if (chosen.length === 0)
    throw new Error(`no row matches '${flags.filter}'; there are ${rows.map(({ id }) => id).join(', ')}`);
  log(
    `\n${'row'.padEnd(36)}${'ours'.padStart(10)}${'PyTorch'.padStart(10)}${'ratio'.padStart(7)}${'ours'.padStart(9)}${'PyTorch'.padStart(9)}${'ratio'.padStart(7)}  of peak, layouts, compiled`,
  );
  const results = chosen.map((row) => {
    const r = run(row, state.peak);
    const notes = [
      r.flops ? `${percent(r.ours.shareOfPeak)} / ${percent(r.peer.shareOfPeak)}` : '',
      r.peer.layouts.length > 1 ? `${r.peer.layout}` : '',
      r.peer.compiled === undefined
        ? ''
        : `compiled ${typeof r.peer.compiled === 'number' ? duration(r.peer.compiled) : r.peer.compiled}`,
      `load ${r.load.toFixed(1)}`,
    ];
    log(
      `${r.id.padEnd(36)}${duration(r.ours.seconds).padStart(10)}${duration(r.peer.seconds).padStart(10)}${r.timeRatio.toFixed(2).padStart(7)}` +
        `${mega(r.ours.rss).padStart(9)}${mega(r.peer.rss).padStart(9)}${r.memoryRatio.toFixed(2).padStart(7)}  ${notes.filter(Boolean).join(', ')}`,
    );
    return r;
  });
  if (flags.json) console.log(JSON.stringify({ machine: state, rows: results }, null, 2));
} catch (error) {
  console.error(`bench: ${error instanceof Error ? error.message : String(error)}`);
  process.exit(1);
}
