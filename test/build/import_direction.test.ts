import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ESLint, Linter } from 'eslint';
import tseslint from 'typescript-eslint';
import { describe, expect, it } from 'vitest';
import { importDirection, order } from '../../scripts/lint/import-direction.mjs';

const root = fileURLToPath(new URL('../../', import.meta.url));
const lib = join(root, 'lib');

/** Messages of the rule for `code` as the text of `file`, a path inside lib/. */
function messages(file: string, code: string): string[] {
  const linter = new Linter({ cwd: root });
  const config: Linter.Config[] = [
    {
      files: ['**/*.ts'],
      languageOptions: { parser: tseslint.parser },
      plugins: { torchgraft: { rules: { 'import-direction': importDirection } } },
      rules: { 'torchgraft/import-direction': ['error', { lib }] },
    },
  ];
  return linter.verify(code, config, join(lib, file)).map((message) => message.message);
}

describe('import direction', () => {
  it.each([
    ['an import', "import { Trainer } from '../train/index.js';"],
    ['a type import', "import type { Trainer } from '../train/trainer.js';"],
    ['a re-export', "export { Trainer } from '../train/index.js';"],
    ['a star re-export', "export * from '../train/index.js';"],
    ['a dynamic import', "await import('../train/index.js');"],
    ['an import type', "type T = import('../train/index.js').Trainer;"],
  ])('rejects %s from a higher folder', (_name, code) => {
    expect(messages('nn/module.ts', code)).toEqual([
      expect.stringContaining('lib/nn must not import from lib/train: imports run downward only'),
    ]);
  });

  it('rejects every upward pair and accepts every downward pair of the main line', () => {
    const line = order.filter((folder) => folder !== 'data' && folder !== 'metrics');
    for (const [i, from] of line.entries()) {
      for (const [j, to] of line.entries()) {
        const found = messages(`${from}/a.ts`, `import { b } from '../${to}/b.js';`);
        expect(found.length, `${from} from ${to}`).toBe(j > i ? 1 : 0);
      }
    }
  });

  it('keeps data apart from models and adapters', () => {
    expect(messages('data/a.ts', "import { graft } from '../adapters/index.js';")).toEqual([
      'lib/data must not import from lib/adapters: it may use only native, tensor, nn, checkpoint.',
    ]);
    expect(messages('data/a.ts', "import { tensor } from '../tensor/index.js';")).toEqual([]);
    expect(messages('train/a.ts', "import { loader } from '../data/index.js';")).toEqual([]);
  });

  it('follows paths out of nested folders', () => {
    expect(messages('nn/layers/linear.ts', "import { x } from '../../models/index.js';")).toHaveLength(1);
    expect(messages('nn/layers/linear.ts', "import { x } from '../module.js';")).toEqual([]);
  });

  it('rejects the index of everything, and folders without a place', () => {
    expect(messages('nn/a.ts', "import { tensor } from '../index.js';")[0]).toContain('must not import lib/index.ts');
    expect(messages('nn/a.ts', "import { x } from '../utils/x.js';")[0]).toContain('lib/utils has no place');
  });

  it('leaves packages and lib/index.ts alone', () => {
    expect(messages('nn/a.ts', "import { z } from 'zod'; import { join } from 'node:path';")).toEqual([]);
    expect(messages('index.ts', "export * from './cli/index.js';")).toEqual([]);
  });

  it('is on for every file of lib/, whose folders all have a place', async () => {
    const eslint = new ESLint({ cwd: root });
    for (const folder of readdirSync(lib, { withFileTypes: true }).filter((entry) => entry.isDirectory())) {
      expect(order).toContain(folder.name);
      const config = (await eslint.calculateConfigForFile(join(lib, folder.name, 'any.ts'))) as Linter.Config;
      expect(config.rules?.['torchgraft/import-direction']).toEqual([2, { lib }]);
    }
    expect(existsSync(join(lib, order[0]!))).toBe(true);
  });
});
