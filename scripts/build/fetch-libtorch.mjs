import { SetupError } from './tools.mjs';
import { findLibtorch } from './find-libtorch.mjs';

/** @returns {Promise<import('./find-libtorch.mjs').LibTorch>} */
export async function obtainLibtorch() {
  const { libtorch, tried } = findLibtorch();
  if (libtorch !== null) return libtorch;
  throw new SetupError(`No LibTorch:\n  ${tried.join('\n  ')}`);
}
