/** `torchgraft build`: compiles the native addon on this machine, in place of the prebuilt one. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';

export function buildCommand(): Command {
  return new Command('build')
    .summary('compile the native addon here, against a LibTorch of your own')
    .description('Compile the native addon on this machine, against a LibTorch of your own (CUDA, for example).')
    .addHelpText(
      'after',
      `
Uses the LibTorch in the folder LIBTORCH, else the torch package of python3, else one that it fetches. A C++20 compiler
and CMake are needed. What is built takes precedence over the prebuilt addon; reinstalling the package removes it.

Example:
  $ LIBTORCH=/opt/libtorch-cuda torchgraft build`,
    )
    .action(() => {
      const script = fileURLToPath(new URL('../../scripts/build/build.mjs', import.meta.url));
      const { status } = spawnSync(process.execPath, [script, 'native'], { stdio: 'inherit' });
      process.exitCode = status ?? 1;
    });
}
