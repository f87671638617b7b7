/** clang-format at one version for everybody, since versions disagree: pip's package, kept in the user's cache. */
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { cacheRoot } from '../build/find-libtorch.mjs';
import { output } from '../build/tools.mjs';

const version = '18.1.8';

/**
 * Path of clang-format, installed on first use; null when pip cannot get it here.
 * @returns {string | null}
 */
export function obtainClangFormat() {
  const folder = join(cacheRoot(), `clang-format-${version}`);
  const program = join(
    folder,
    'clang_format',
    'data',
    'bin',
    process.platform === 'win32' ? 'clang-format.exe' : 'clang-format',
  );
  if (existsSync(program)) return program;
  mkdirSync(cacheRoot(), { recursive: true });
  const partial = mkdtempSync(join(cacheRoot(), '.clang-format-'));
  const pip = ['-m', 'pip', 'install', '--quiet', '--no-deps', '--only-binary=:all:', '--target', partial];
  const installed = output('python3', [...pip, `clang-format==${version}`]) !== null;
  try {
    if (installed && !existsSync(folder)) renameSync(partial, folder);
  } catch {
    // Another process was as quick: its copy is as good.
  }
  rmSync(partial, { recursive: true, force: true });
  return existsSync(program) ? program : null;
}
