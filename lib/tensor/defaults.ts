import { assertOptions, runSync } from './check.js';
import { assertDevice, assertDType, isFloatingPoint } from './dtype.js';
import type { Device, DType } from './dtype.js';

let device: Device = 'cpu';
let dtype: DType = 'float32';

/** Device of tensors made without naming one. */
export function defaultDevice(): Device {
  return device;
}

/** Floating dtype of tensors made without naming one. */
export function defaultDType(): DType {
  return dtype;
}

/**
 * Runs `fn` with other defaults for tensor creation; `dtype` must be a floating one. Functions of `aten` and
 * `fromTypedArray` are not concerned.
 * @example const model = withDefaults({ device: 'meta' }, () => createModel('resnet50')) // shapes without memory
 */
export function withDefaults<R>(options: { device?: Device; dtype?: DType }, fn: () => R): R {
  assertOptions(options, 'withDefaults', ['device', 'dtype']);
  const before = [device, dtype] as const;
  const nextDevice = assertDevice(options?.device ?? device, 'withDefaults');
  const nextDType = assertDType(options?.dtype ?? dtype, 'withDefaults');
  if (!isFloatingPoint(nextDType)) {
    throw new TypeError(`withDefaults: dtype must be a floating one; got '${nextDType}'`);
  }
  device = nextDevice;
  dtype = nextDType;
  try {
    return runSync('withDefaults', fn);
  } finally {
    [device, dtype] = before;
  }
}
