/** What this machine has and what it lacks, for `torchgraft doctor`; works before anything is built. */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { arch, availableParallelism, platform, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { findLibtorch, fetchedVersion } from './find-libtorch.mjs';
import loadAddonModule from './load-addon.cjs';
import { root } from './native.mjs';
import { SetupError, compareVersions, findCmake, findCompiler, findPython } from './tools.mjs';

const { buildCommand, findAddons } = loadAddonModule;

/**
 * @typedef {import('../../lib/cli/doctor.js').EnvironmentReport} EnvironmentReport
 * @typedef {import('../../lib/cli/doctor.js').AddonReport} AddonReport
 */

const { version, engines } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));

/** The GNU C library's version; null on other systems. */
function glibcVersion() {
  const report = /** @type {{ header?: { glibcVersionRuntime?: string } }} */ (process.report.getReport());
  return report.header?.glibcVersionRuntime ?? null;
}

// Loads the addon and prints what it says of itself, or why it cannot be loaded. A child does this, since an addon that does
// not fit its LibTorch may end the process instead of throwing.
const probe = `
  let loaded;
  try {
    loaded = require(process.argv[1]).loadAddon(process.argv[2]);
  } catch (error) {
    console.log(JSON.stringify({ error: error.message }));
    process.exit();
  }
  const { addon, path } = loaded;
  const { torch, compiledAgainst, cuda } = addon.buildInfo();
  const devices = ['cpu', ...Array.from({ length: addon.deviceCount('cuda') }, (_, i) => 'cuda:' + i)];
  console.log(JSON.stringify({ path, loads: true, torch, compiledAgainst, cuda, devices, threads: addon.numThreads() }));
`;

/** @returns {AddonReport} */
function checkAddon() {
  const none = { path: null, loads: false, error: null, torch: null, compiledAgainst: null, cuda: null, devices: [], threads: null };
  const { candidates, missing } = findAddons(root);
  const [first] = candidates;
  if (first === undefined) return { ...none, error: missing.join('; ') };
  const loader = join(root, 'scripts', 'build', 'load-addon.cjs');
  const child = spawnSync(process.execPath, ['-e', probe, loader, root], { encoding: 'utf8', timeout: 120_000 });
  if (child.status !== 0) {
    const reason = child.stderr.split('\n').find((line) => /error/i.test(line)) ?? child.stderr.trim();
    return { ...none, path: first.file, error: reason || `the process ended with ${child.signal ?? `code ${child.status}`}` };
  }
  const report = JSON.parse(child.stdout);
  if (report.loads) return { ...none, ...report };
  // Between its first line and its last, which advises, the message names a place and a reason per line.
  const reasons = report.error.split('\n').slice(1, -1).map((/** @type {string} */ line) => line.trim());
  return { ...none, path: first.file, error: reasons.join('; ') };
}

/** @returns {Pick<EnvironmentReport, 'libtorch' | 'libtorchTried'>} */
function checkLibtorch() {
  try {
    const { libtorch, tried } = findLibtorch();
    return { libtorch, libtorchTried: tried };
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    return { libtorch: null, libtorchTried: [error.message] };
  }
}

/**
 * Everything that decides whether torchgraft can be built and run here, and what to do about what is missing.
 * @returns {EnvironmentReport}
 */
export function checkEnvironment() {
  const nodeMinimum = engines.node.replace(/^>=/, '');
  const nodeFits = compareVersions(process.versions.node, nodeMinimum) >= 0;
  const installed = existsSync(join(root, 'node_modules')) || !existsSync(join(root, 'package-lock.json'));
  const tools = [findCompiler(), findCmake(), findPython()];
  const { libtorch, libtorchTried } = checkLibtorch();
  const addon = checkAddon();

  const build = `${buildCommand(root)} (in ${root})`;
  const advice = [];
  if (!nodeFits) advice.push(`Node is ${process.versions.node}; install ${nodeMinimum} or newer`);
  if (!installed) advice.push('the npm packages are not installed: npm ci');
  const wrongVariable = libtorch === null && process.env['LIBTORCH'];
  if (wrongVariable) advice.push(...libtorchTried);
  if (!addon.loads) {
    // Python is needed only where LibTorch must be fetched.
    const needed = tools.filter((tool) => tool.name !== 'Python 3 with pip' || libtorch === null);
    for (const tool of needed) if (tool.advice !== null) advice.push(tool.advice);
    if (libtorch === null && !wrongVariable) advice.push(`LibTorch ${fetchedVersion} (about 190 MB) will be fetched by the build, once`);
    advice.push(
      addon.path === null
        ? `build the native addon: ${build}`
        : `the addon does not load (${addon.error}): build it again with ${build}; if that does not help, remove its folder build/ first`,
    );
  } else if (addon.torch !== addon.compiledAgainst) {
    advice.push(
      `the addon was compiled against LibTorch ${addon.compiledAgainst} but runs on ${addon.torch}: build it again with ${build}`,
    );
  }
  return {
    torchgraft: version,
    ok: nodeFits && addon.loads && addon.torch === addon.compiledAgainst,
    node: { version: process.versions.node, minimum: nodeMinimum, ok: nodeFits },
    platform: {
      os: platform(),
      release: release(),
      arch: arch(),
      glibc: glibcVersion(),
      processors: availableParallelism(),
      memoryBytes: totalmem(),
    },
    tools,
    libtorch,
    libtorchTried,
    addon,
    advice,
  };
}

/**
 * The report as text for people.
 * @param {EnvironmentReport} report
 * @returns {string}
 */
export function formatEnvironment(report) {
  const { node, platform: machine, libtorch, addon } = report;
  const origins = { LIBTORCH: 'the variable LIBTORCH', python: 'the torch package of python3', cache: "the user's cache" };
  /** @type {[string, boolean, string][]} */
  const rows = [
    ['Node', node.ok, `${node.version} (${node.minimum} or newer is needed)`],
    [
      'Platform',
      true,
      `${machine.os} ${machine.arch}${machine.glibc === null ? '' : `, glibc ${machine.glibc}`}, ${machine.processors} processors, ${Math.round(machine.memoryBytes / 2 ** 30)} GiB memory`,
    ],
    ...report.tools.map(
      (tool) => /** @type {[string, boolean, string]} */ ([tool.name, tool.ok, tool.ok ? (tool.version ?? '') : (tool.advice ?? '')]),
    ),
    [
      'LibTorch',
      libtorch !== null,
      libtorch === null
        ? report.libtorchTried.join('; ')
        : `${libtorch.version} (${libtorch.cuda === null ? 'CPU' : `CUDA ${libtorch.cuda}`}) in ${libtorch.dir}, from ${origins[libtorch.origin]}`,
    ],
    [
      'Native addon',
      addon.loads,
      addon.loads ? `${addon.path}, runs on LibTorch ${addon.torch}, compiled against ${addon.compiledAgainst}` : (addon.error ?? ''),
    ],
  ];
  if (addon.loads) rows.push(['Devices', true, addon.devices.join(', ')], ['Threads', true, String(addon.threads)]);
  const width = Math.max(...rows.map(([name]) => name.length));
  // Where torchgraft runs, what a build would need is no loss.
  const lack = report.ok ? 'absent ' : 'missing';
  const lines = rows.map(([name, ok, text]) => `${ok ? 'ok     ' : lack}  ${name.padEnd(width)}  ${text}`.trimEnd());
  const lacksOnlyTools = report.ok && rows.some(([, ok]) => !ok);
  const verdict = [
    report.ok ? 'torchgraft runs here.' : 'torchgraft cannot run here yet.',
    ...(lacksOnlyTools ? ['What is absent is needed only to build the addon on this machine.'] : []),
  ];
  const todo = report.advice.length === 0 ? [] : ['What to do:', ...report.advice.map((line, i) => `  ${i + 1}. ${line}`)];
  return [`torchgraft ${report.torchgraft}`, ...lines, '', ...verdict, ...todo].join('\n').trimEnd();
}
