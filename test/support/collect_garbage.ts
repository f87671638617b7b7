import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** Collects what earlier tests left outside scopes, so that it is not collected while a test counts tensors. */
export function collectGarbage(): void {
  setFlagsFromString('--expose-gc');
  for (let i = 0; i < 3; i++) (runInNewContext('gc') as () => void)();
}
