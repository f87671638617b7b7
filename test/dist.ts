/** The compiled package, for tests that need processes of their own. `npm test` compiles before it tests. */
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';

/** The folder `dist`, or the one that the variable TORCHGRAFT_DIST names. */
export function distFolder(): string {
  const dist = process.env['TORCHGRAFT_DIST'] ?? resolve(import.meta.dirname, '..', 'dist');
  if (!existsSync(join(dist, 'cli', 'main.js'))) {
    throw new Error(
      `${dist} has no compiled command line; run \`npm run build\`, or \`npm test\`, which does it first`,
    );
  }
  return dist;
}
