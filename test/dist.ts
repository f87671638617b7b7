/** The compiled package, for tests that need processes of their own. */
import { readdirSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const root = resolve(import.meta.dirname, '..');

function newest(folder: string, suffix: string): number {
  const files = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith(suffix));
  return files.reduce((latest, name) => Math.max(latest, statSync(join(folder, name)).mtimeMs), 0);
}

/** The folder `dist`; an error if it is missing or older than `lib`, for then it would test something else. */
export function distFolder(): string {
  const dist = join(root, 'dist');
  let isFresh = false;
  try {
    isFresh =
      statSync(join(dist, 'cli/main.js')).mtimeMs > 0 && newest(dist, '.js') >= newest(join(root, 'lib'), '.ts');
  } catch {
    // no dist at all
  }
  if (!isFresh)
    throw new Error('dist/ is missing or older than lib/; run `npm run build` (or `npx tsc`) before these tests');
  return dist;
}

/** `dist/NAME` as a URL for import. */
export const distUrl = (name: string): string => pathToFileURL(join(distFolder(), name)).href;
