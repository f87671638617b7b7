/**
 * `npm run lint`: ESLint, Prettier, clang-format, the type checks and the API reference, all of them even if one fails.
 * `npm run format` (--fix): repairs what can be repaired.
 */
import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { root } from '../build/native.mjs';
import { SetupError, runScript } from '../build/tools.mjs';
import { packageProgram } from '../build/typescript.mjs';
import { obtainClangFormat } from './clang-format.mjs';

const fix = process.argv.includes('--fix');

/** @typedef {{ name: string, command: string, args: string[] } | { name: string, skipped: string }} Check */

/**
 * A check by a program of a development dependency.
 * @param {string} name
 * @param {string} packageName
 * @param {string} program
 * @param {string[]} args
 * @returns {Check}
 */
const nodeCheck = (name, packageName, program, args) => ({
  name,
  command: process.execPath,
  args: [packageProgram(packageName, program), ...args],
});

/** @returns {Check} */
function clangFormat() {
  const name = 'clang-format';
  const sources = readdirSync(join(root, 'csrc'), { recursive: true, encoding: 'utf8' })
    .filter((file) => /\.(cpp|h|cu|cuh)$/.test(file))
    .map((file) => join('csrc', file));
  const command = obtainClangFormat();
  if (command === null) return { name, skipped: 'pip cannot install clang-format here' };
  return { name, command, args: fix ? ['-i', ...sources] : ['--dry-run', '-Werror', ...sources] };
}

/** @returns {Check[]} in the order in which a repair must run */
function checks() {
  const typeScript = nodeCheck('types of lib and test', 'typescript', 'tsc', ['-p', 'tsconfig.check.json']);
  const scripts = nodeCheck('types of scripts', 'typescript', 'tsc', ['-p', 'tsconfig.scripts.json']);
  const apiReference = {
    name: 'API reference',
    command: process.execPath,
    args: [join(root, 'scripts', 'docs', 'api.mjs'), '--check'],
  };
  const cache = ['--cache', '--cache-location', 'build/eslintcache', '--cache-strategy', 'content'];
  return [
    nodeCheck('eslint', 'eslint', 'eslint', [...cache, ...(fix ? ['--fix'] : []), '.']),
    nodeCheck('prettier', 'prettier', 'prettier', ['--log-level', 'warn', fix ? '--write' : '--check', '.']),
    clangFormat(),
    ...(fix ? [] : [typeScript, scripts, apiReference]),
  ];
}

/**
 * Runs a check, prints its outcome and its output if it failed.
 * @param {Check} check
 * @returns {Promise<boolean>} whether it found nothing
 */
async function run(check) {
  if ('skipped' in check) {
    console.log(`skipped  ${check.name}: ${check.skipped}`);
    return true;
  }
  const start = performance.now();
  const child = spawn(check.command, check.args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (chunk) => (text += chunk));
  const code = await new Promise((resolve) => {
    child.on('error', (error) => {
      text += error.message;
      resolve(1);
    });
    child.on('close', resolve);
  });
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  console.log(`${code === 0 ? 'ok     ' : 'FAILED '}  ${check.name} (${seconds} s)`);
  if (code !== 0) console.log(text.trimEnd());
  return code === 0;
}

await runScript(async () => {
  const queue = checks();
  let failed = 0;
  const worker = async () => {
    for (let check = queue.shift(); check !== undefined; check = queue.shift()) if (!(await run(check))) failed++;
  };
  // Two at a time; repairs one after the other, since they write the same files.
  await Promise.all(Array.from({ length: fix ? 1 : 2 }, worker));
  if (failed > 0)
    throw new SetupError(
      `${failed} of the checks failed${fix ? '' : '; `npm run format` repairs what can be repaired'}.`,
    );
});
