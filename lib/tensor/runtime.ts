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

/** How many CUDA devices this LibTorch can use; 0 for a CPU build. */
export function cudaDeviceCount(): number {
  return native.deviceCount('cuda');
}

/** Waits until the device has done everything it was asked to. */
export function synchronize(device: Device = 'cuda'): void {
  native.synchronize(assertDevice(device, 'synchronize'));
}

/** The LibTorch in use: its version, what the addon was compiled against, CUDA version or null, build details. */
export function buildInfo(): {
  torch: string;
  compiledAgainst: string;
  cuda: string | null;
  cxx: string;
  parallel: string;
} {
  return native.buildInfo();
}
