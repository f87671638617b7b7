/** `node scripts/build/build.mjs [native|typescript]...`: builds these parts in order; all of them without an argument. */
import { buildNative } from './native.mjs';
import { runScript } from './tools.mjs';

await runScript(async () => {
  await buildNative();
});
