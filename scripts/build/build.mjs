/** `node scripts/build/build.mjs [native|typescript]...`: builds these parts in order; all of them without an argument. */
import { buildNative } from './native.mjs';
import { SetupError, runScript } from './tools.mjs';
import { buildTypescript } from './typescript.mjs';

/** @type {Record<string, () => unknown>} */
const parts = { native: () => buildNative(), typescript: buildTypescript };

await runScript(async () => {
  const asked = process.argv.slice(2);
  for (const name of asked.length > 0 ? asked : Object.keys(parts)) {
    const build = parts[name];
    if (build === undefined) throw new SetupError(`No part '${name}' to build; there are ${Object.keys(parts).join(', ')}.`);
    await build();
  }
});
