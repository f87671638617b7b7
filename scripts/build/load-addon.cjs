/**
 * Finds and loads the compiled addon: the build of this machine, else a prebuilt binary of this platform, which comes in an
 * npm package of its own. CommonJS without types to compile, since `doctor` runs it before anything is built.
 */
const { existsSync } = require('node:fs');
const { createRequire } = require('node:module');
const { dirname, join } = require('node:path');

const platform = `${process.platform}-${process.arch}`;

/** Packages that hold the prebuilt addon and the LibTorch that it runs on, here. */
const packages = { addon: `@torchgraft/${platform}`, libtorch: `@torchgraft/libtorch-cpu-${platform}` };

/** @param {unknown} error */
const message = (error) => (error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error));

/**
 * @typedef {{ file: string, libtorch: string | null }} Candidate
 *   An addon file, and the file that must be loaded before it to bring its LibTorch; null when it finds LibTorch itself.
 */

/**
 * The prebuilt addon of a package folder, in node-gyp-build's layout.
 * @param {string} folder
 * @returns {string | null}
 */
function prebuiltIn(folder) {
  try {
    return createRequire(__filename)('node-gyp-build').resolve(folder);
  } catch {
    return null;
  }
}

/**
 * Addon files that exist, best first, and a line for each place that has none.
 * @param {string} root folder of the package torchgraft
 * @returns {{ candidates: Candidate[], missing: string[] }}
 */
function findAddons(root) {
  /** @type {Candidate[]} */
  const candidates = [];
  const missing = [];
  const built = join(root, 'build', 'Release', 'torchgraft.node');
  if (existsSync(built)) candidates.push({ file: built, libtorch: null });
  else missing.push(`${built}: no such file`);

  const beside = createRequire(join(root, 'package.json'));
  try {
    const file = prebuiltIn(dirname(beside.resolve(`${packages.addon}/package.json`)));
    if (file === null) missing.push(`${packages.addon}: it has no prebuilds/ for this platform`);
    else candidates.push({ file, libtorch: beside.resolve(packages.libtorch) });
  } catch (error) {
    missing.push(`prebuilds for ${platform}: ${message(error)}`);
  }
  return { candidates, missing };
}

/**
 * What to type to build the addon on this machine.
 * @param {string} root
 */
function buildCommand(root) {
  return isInstalled(root) ? 'npx torchgraft build' : 'npm run build:native';
}

/**
 * Whether `root` is a package that npm installed, not a clone of the repository.
 * @param {string} root
 */
const isInstalled = (root) => /[\\/]node_modules[\\/]/.test(root);

/**
 * What helps when no addon loads.
 * @param {string} root
 * @param {readonly string[]} failures
 */
function advise(root, failures) {
  const build = `\`${buildCommand(root)}\``;
  if (isInstalled(root)) {
    const install = `install the optional packages ${packages.addon} and ${packages.libtorch} (npm leaves them out with --omit=optional), or `;
    return `To help: ${failures.length === 0 ? install : ''}build it on this machine with ${build} (a C++ compiler and CMake are needed).`;
  }
  return failures.length === 0
    ? `It has not been built: run ${build} in the package folder.`
    : `If LibTorch was moved or replaced since the build, run ${build} in the package folder.`;
}

/**
 * Loads the addon of the package in `root`.
 *
 * @param {string} root
 * @returns {{ addon: unknown, path: string }}
 * @throws {Error} that lists every place tried, why each failed, and what helps
 */
function loadAddon(root) {
  const { candidates, missing } = findAddons(root);
  const failures = [];
  for (const { file, libtorch } of candidates) {
    try {
      if (libtorch !== null) require(libtorch);
      return { addon: require(file), path: file };
    } catch (error) {
      failures.push(`${file}: ${message(error)}`);
    }
  }
  throw new Error(
    `The native addon of torchgraft could not be loaded. Tried:\n${[...failures, ...missing].map((line) => `  ${line}`).join('\n')}\n` +
      `${advise(root, failures)} \`npx torchgraft doctor\` checks this machine and says what is missing.`,
  );
}

module.exports = { buildCommand, findAddons, loadAddon, packages };
