/**
 * The library as CommonJS, for Node versions that cannot `require` an ES module (before 20.19). These must not have two
 * copies of it in one process, one for `require` and one for `import`: a tensor of one would be none of the other. So there
 * `import` gets the CommonJS copy, too; newer Nodes take the ES modules for both (the condition `module-sync`).
 */
import { cpSync, mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { bundleLibrary } from '../build/bundle.mjs';
import { filesOf } from './tarball.mjs';

/**
 * Writes `dist/cjs/` into a staged package: one file with all modules, the same for `import`, and the declarations.
 * @param {string} dist the compiled library, in the staged package
 * @returns {Promise<void>}
 */
export async function writeCommonjs(dist) {
  const folder = join(dist, 'cjs');
  const file = join(folder, 'index.js');
  const exported = await bundleLibrary(dist, dirname(dist), { file, format: 'cjs', exports: 'named' });

  for (const file of filesOf(dist).filter((name) => name.endsWith('.d.ts') && !/^(cjs|cli)\//.test(name))) {
    mkdirSync(dirname(join(folder, file)), { recursive: true });
    cpSync(join(dist, file), join(folder, file));
  }
  const names = exported.map((name, i) => ({ name, local: `export${i}` }));
  writeFileSync(
    join(folder, 'index.mjs'),
    [
      "import all from './index.js';",
      ...names.map(({ name, local }) => `const ${local} = all.${name};`),
      `export { ${names.map(({ name, local }) => `${local} as ${name}`).join(', ')} };\n`,
    ].join('\n'),
  );
  // Below this file `.js` and `.d.ts` mean CommonJS.
  writeFileSync(join(folder, 'package.json'), '{ "type": "commonjs" }\n');
}
