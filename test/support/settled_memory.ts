import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { memory } from '../../lib/tensor/index.js';

/** `memory()` once what nothing holds is collected: left by earlier tests, it would go while a test counts. */
export function settledMemory(): ReturnType<typeof memory> {
  setFlagsFromString('--expose-gc');
  for (let i = 0; i < 3; i++) (runInNewContext('gc') as () => void)();
  return memory();
}
