/**
 * `npm run package`: makes the tarballs that are published, into build/package/, and prints their sizes:
 *   torchgraft                              JavaScript and types; installs anywhere
 *   @torchgraft/PLATFORM                    the addon, compiled
 *   @torchgraft/libtorch-cpu-PLATFORM       the LibTorch libraries that it loads
 * The first depends on the other two optionally, so that npm takes those of the machine and no others.
 *
 * Options: --level N, compression from 1 (quick) to 9 (small, the default); --out DIR;
 * --built, to pack what build/ and dist/ hold; --json.
 */
import { mkdirSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { findLibtorch } from '../build/find-libtorch.mjs';
import loader from '../build/load-addon.cjs';
import { buildDir, buildNative } from '../build/native.mjs';
import { SetupError, runScript } from '../build/tools.mjs';
import { buildTypescript } from '../build/typescript.mjs';
import { requireBinutils } from './libraries.mjs';
import { inspect, libtorchPackageVersion, megabytes, stageAddon, stageLibtorch, stageMain } from './stage.mjs';
import { writeTarball } from './tarball.mjs';

await runScript(async () => {
  const { values } = parseArgs({
    options: {
      level: { type: 'string', default: '9' },
      out: { type: 'string' },
      built: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
    },
  });
  const level = Number(values.level);
  if (!Number.isInteger(level) || level < 1 || level > 9)
    throw new SetupError(`--level is a number from 1 to 9, not ${values.level}.`);
  if (process.platform !== 'linux') throw new SetupError('npm run package reads ELF libraries: it runs on Linux.');
  requireBinutils();
  if (!values.built) {
    await buildNative();
    await buildTypescript();
  }
  const { libtorch } = findLibtorch();
  if (libtorch === null) throw new SetupError('LibTorch has gone: run npm run build:native.');
  if (libtorch.cuda !== null) {
    throw new SetupError(
      `LibTorch in ${libtorch.dir} is a CUDA build; binaries are published for CPU builds: set LIBTORCH to one.`,
    );
  }

  const out = resolve(values.out ?? join(buildDir, 'package'));
  const stage = join(out, 'stage');
  mkdirSync(stage, { recursive: true });
  const version = libtorchPackageVersion(libtorch);
  const libraries = stageLibtorch(join(stage, 'libtorch'), libtorch);
  const addon = stageAddon(join(stage, 'addon'), version);
  const binaries = { [loader.packages.addon]: addon.version, [loader.packages.libtorch]: version };
  const main = await stageMain(join(stage, 'torchgraft'), binaries);

  const results = [];
  for (const staged of [main, addon, libraries]) {
    inspect(staged, libtorch.dir);
    const file = join(out, `${staged.name.replace('@', '').replace('/', '-')}-${staged.version}.tgz`);
    const sizes = await writeTarball(staged.folder, file, level);
    results.push({ name: staged.name, version: staged.version, file, ...sizes, notes: staged.notes });
  }
  rmSync(stage, { recursive: true });
  if (values.json) console.log(JSON.stringify(results, null, 2));
  else {
    for (const { name, version: v, file, packed, unpacked, notes } of results) {
      console.log(`${name} ${v}: ${megabytes(packed)} packed, ${megabytes(unpacked)} unpacked\n  ${file}`);
      for (const note of notes) console.log(`  ${note}`);
    }
  }
});
