/** Lays out the three npm packages as folders, and looks into them for what must not be published. */
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import loader from '../build/load-addon.cjs';
import { addonPath, buildDir, root } from '../build/native.mjs';
import { SetupError } from '../build/tools.mjs';
import { writeCommonjs } from './commonjs.mjs';
import { copyStripped, findLicenses, neededLibraries, systemRequirements } from './libraries.mjs';
import { filesOf } from './tarball.mjs';

/** @typedef {{ name: string, version: string, folder: string, notes: string[] }} Staged a package laid out as a folder */

const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const platform = `${process.platform}-${process.arch}`;

/** What every package says of itself. */
const common = Object.fromEntries(
  ['license', 'author', 'homepage', 'repository', 'bugs'].flatMap((key) =>
    key in manifest ? [[key, manifest[key]]] : [],
  ),
);

/** The machines that binaries compiled here serve. */
const machine = {
  os: [process.platform],
  cpu: [process.arch],
  ...(process.platform === 'linux' ? { libc: ['glibc'] } : {}),
};

/**
 * @param {string} folder
 * @param {object} content of its package.json
 */
function writeManifest(folder, content) {
  writeFileSync(join(folder, 'package.json'), `${JSON.stringify(content, null, 2)}\n`);
}

/** @param {string} folder @returns {string} the folder, empty */
function emptied(folder) {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  return folder;
}

/**
 * Copies a component of the build as `cmake --install` gives it: without symbols, and without the build's own paths.
 * @param {string} component
 * @param {string} folder
 */
function install(component, folder) {
  const args = ['--install', buildDir, '--prefix', folder, '--component', component, '--strip'];
  execFileSync('cmake', args, { stdio: ['ignore', 'ignore', 'inherit'] });
}

/**
 * The package `torchgraft`: what `npm pack` would take by the list `files`, and the library as CommonJS.
 * @param {string} folder
 * @param {Record<string, string>} binaries version of each package of binaries
 * @returns {Promise<Staged>}
 */
export async function stageMain(folder, binaries) {
  emptied(folder);
  const npm = process.env['npm_execpath'];
  const pack = ['pack', '--dry-run', '--json', '--ignore-scripts'];
  const [command, args] = npm?.endsWith('.js') ? [process.execPath, [npm, ...pack]] : ['npm', pack];
  const answer = JSON.parse(
    execFileSync(command, args, { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }),
  );
  // An array until npm 11, an object by name since.
  const [{ files }] = Object.values(answer);
  for (const { path } of files) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    cpSync(join(root, path), join(folder, path));
  }
  await writeCommonjs(join(folder, 'dist'));

  const published = { ...manifest };
  delete published.devDependencies;
  // Only what works in an installed package: the rest belongs to the repository.
  const scripts = { 'build:native': manifest.scripts['build:native'], doctor: manifest.scripts.doctor };
  writeManifest(folder, { ...published, scripts, optionalDependencies: binaries });
  return { name: manifest.name, version: manifest.version, folder, notes: [] };
}

/**
 * The package of the addon, in node-gyp-build's layout.
 * @param {string} folder
 * @param {string} libtorchVersion of the package of libraries
 * @returns {Staged}
 */
export function stageAddon(folder, libtorchVersion) {
  const { addon: name, libtorch } = loader.packages;
  const prebuilds = join(emptied(folder), 'prebuilds', platform);
  mkdirSync(prebuilds, { recursive: true });
  install('addon', prebuilds);
  const tagged = process.platform === 'linux' ? 'torchgraft.glibc.node' : 'torchgraft.node';
  if (tagged !== basename(addonPath)) {
    cpSync(join(prebuilds, basename(addonPath)), join(prebuilds, tagged));
    rmSync(join(prebuilds, basename(addonPath)));
  }
  const needs = systemRequirements([join(prebuilds, tagged)]);
  writeManifest(folder, {
    name,
    version: manifest.version,
    description: `The native addon of torchgraft, compiled for ${platform}`,
    ...common,
    ...machine,
    engines: manifest.engines,
    files: ['prebuilds'],
    exports: { './package.json': './package.json' },
    optionalDependencies: { [libtorch]: libtorchVersion },
    config: needs,
  });
  cpSync(join(root, 'LICENSE'), join(folder, 'LICENSE'));
  const text = `The native addon of torchgraft for ${platform}. It is installed along with the package torchgraft; there is nothing to import here.`;
  writeFileSync(join(folder, 'README.md'), `# ${name}\n\n${text}\n`);
  const system = Object.entries(needs).map(([library, version]) => `${library} ${version}`);
  return {
    name,
    version: manifest.version,
    folder,
    notes: [`needs ${system.join(' and ')} or newer, as this machine's compiler has it`],
  };
}

/**
 * The package of LibTorch's libraries: those that the linker loads for the addon, and runtime.node, which brings them in.
 * @param {string} folder
 * @param {import('../build/find-libtorch.mjs').LibTorch} libtorch
 * @returns {Staged}
 */
export function stageLibtorch(folder, libtorch) {
  const { libtorch: name } = loader.packages;
  const version = libtorchPackageVersion(libtorch);
  const lib = join(emptied(folder), 'lib');
  mkdirSync(lib);
  const libraries = neededLibraries(addonPath, libtorch.dir);
  for (const library of libraries) copyStripped(library.path, join(lib, library.name));
  install('runtime', lib);
  const notes = libraries.map((library) => {
    const [before, after] = [statSync(library.path).size, statSync(join(lib, library.name)).size];
    return `${library.name}: ${megabytes(after)}, ${megabytes(before)} with symbols`;
  });
  const licenses = findLicenses(libtorch.dir);
  if (licenses !== null) cpSync(licenses, join(folder, 'licenses'), { recursive: true });
  else
    notes.push(
      'NOT FIT FOR PUBLISHING: this LibTorch has no license texts beside it; fetch it anew (remove its cache folder)',
    );
  writeManifest(folder, {
    name,
    version,
    description: `The shared libraries of LibTorch ${libtorch.version} that torchgraft loads, for ${platform}`,
    license: 'SEE LICENSE IN licenses/LICENSE',
    ...machine,
    files: ['lib', 'licenses'],
    main: 'lib/runtime.node',
  });
  const text = `LibTorch ${libtorch.version} for ${platform}, the libraries that torchgraft loads and no more, as PyTorch publishes them but without symbols. Loading this package brings them into the process; there is nothing else in it.`;
  writeFileSync(join(folder, 'README.md'), `# ${name}\n\n${text}\n`);
  return { name, version, folder, notes };
}

/**
 * The libraries are published under LibTorch's own version: a new torchgraft on the same LibTorch downloads nothing large.
 * @param {import('../build/find-libtorch.mjs').LibTorch} libtorch
 */
export const libtorchPackageVersion = ({ version }) => version.replace(/\+.*/, '');

/** @param {number} bytes */
export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 1)} MB`;

/** Parts of paths that no published file may have, licenses aside: tests and their data, headers and sources of LibTorch, loose ends of builds. */
const strangers = [
  /(^|\/)(test|tests|golden|fixtures|examples?)\//,
  /\.(safetensors|pth?|npy|npz|jpe?g|png)$/,
  /(^|\/)(ATen|c10|torch\/csrc)\//,
  /\.(map|tsbuildinfo|log|o|gch)$/,
];

/**
 * Throws when a staged package holds test data, parts of LibTorch that are no libraries, or paths of this machine.
 * @param {Staged} staged
 * @param {string} libtorch
 */
export function inspect({ name, folder }, libtorch) {
  const files = filesOf(folder);
  const strange = files.filter(
    (file) => !file.startsWith('licenses/') && strangers.some((pattern) => pattern.test(file)),
  );
  if (strange.length > 0) throw new SetupError(`${name} must not hold ${strange.slice(0, 5).join(', ')}.`);
  const own = [root, dirname(folder), dirname(dirname(libtorch)), ...(homedir().length > 5 ? [homedir()] : [])];
  const paths = own.map((path) => `${path.replace(/\/$/, '')}/`).filter((path) => existsSync(path));
  for (const file of files) {
    const bytes = readFileSync(join(folder, file));
    const found = paths.find((path) => bytes.includes(path));
    if (found !== undefined)
      throw new SetupError(`${name} must not hold this machine's paths, but ${file} contains ${found}.`);
  }
}
