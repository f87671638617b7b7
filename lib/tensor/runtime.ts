import { native } from '../native/index.js';
import { assertInteger } from './check.js';
import { assertDevice } from './dtype.js';
import type { Device } from './dtype.js';

/** Threads that one operator may use on the CPU. */
export function getNumThreads(): number {
  return native.numThreads();
}

/** Sets how many threads one operator may use on the CPU. */
export function setNumThreads(n: number): void {
  native.setNumThreads(assertInteger(n, 'setNumThreads', 'n', 1));
}

/**
 * Lets LibTorch's inner steps be called by name: the operators that begin with an underscore and the backward steps. They
 * do not check their arguments, and a wrong size there may end the process or change foreign memory, so by default a call
 * of one is a `TypeError`. Holds for the whole process.
 *
 * @param allow default true
 */
export function allowUncheckedOperators(allow = true): void {
  native.allowUncheckedOperators(allow);
}

/** How many CUDA devices this LibTorch can use; 0 for a CPU build. */
export function cudaDeviceCount(): number {
  return native.deviceCount('cuda');
}

/** Waits until the device has done everything it was asked to. */
export function synchronize(device: Device = 'cuda'): void {
  native.synchronize(assertDevice(device, 'synchronize'));
}

/**
 * The LibTorch in use: its version, what the addon was compiled against, CUDA version or null, whether our own CUDA
 * kernels were compiled, build details.
 */
export function buildInfo(): {
  torch: string;
  compiledAgainst: string;
  cuda: string | null;
  cudaKernels: boolean;
  cxx: string;
  parallel: string;
} {
  return native.buildInfo();
}
