import { native } from '../native/index.js';
import { assertInteger, assertTensor } from './check.js';
import { describe } from './describe.js';
import { assertDevice } from './dtype.js';
import type { Device } from './dtype.js';
import type { Tensor } from './tensor.js';

/**
 * Seeds the random generators of all devices. The same seed gives the same numbers as in PyTorch.
 * @throws TypeError or RangeError unless `seed` is an integer of at most 64 bits
 */
export function manualSeed(seed: number | bigint): void {
  if (typeof seed === 'bigint') {
    if (seed < -(2n ** 63n) || seed >= 2n ** 64n) {
      throw new RangeError(`manualSeed: seed must fit in 64 bits; got ${describe(seed)}`);
    }
    native.manualSeed(BigInt.asUintN(64, seed));
  } else {
    native.manualSeed(BigInt.asUintN(64, BigInt(assertInteger(seed, 'manualSeed', 'seed'))));
  }
}

/** State of a device's random generator, as a byte tensor for `setRngState`. */
export function getRngState(device: Device = 'cpu'): Tensor {
  return native.rngState(assertDevice(device, 'getRngState')) as Tensor;
}

/** Restores what `getRngState` gave: random numbers repeat from there. */
export function setRngState(state: Tensor, device: Device = 'cpu'): void {
  native.setRngState(assertDevice(device, 'setRngState'), assertTensor(state, 'setRngState', 'state'));
}
