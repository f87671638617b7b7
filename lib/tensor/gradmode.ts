import { native } from '../native/index.js';
import { assertOptions, assertTensor, assertTensors, runSync } from './check.js';
import { describe } from './describe.js';
import { assertDevice, assertDType } from './dtype.js';
import type { Device, DType } from './dtype.js';
import type { Tensor } from './tensor.js';

function withGradMode<R>(where: string, enabled: boolean, fn: () => R): R {
  const before = native.gradMode();
  native.setGradMode(enabled);
  try {
    return runSync(where, fn);
  } finally {
    native.setGradMode(before);
  }
}

/** Runs `fn` without recording a graph. */
export function noGrad<R>(fn: () => R): R {
  return withGradMode('noGrad', false, fn);
}

/** Runs `fn` with recording, also inside `noGrad`. */
export function enableGrad<R>(fn: () => R): R {
  return withGradMode('enableGrad', true, fn);
}

/** Whether operations are being recorded for `backward`. */
export function isGradEnabled(): boolean {
  return native.gradMode();
}

/** Runs `fn` without a graph and without version counters; its tensors can never take part in autograd. */
export function inferenceMode<R>(fn: () => R): R {
  const token = native.inferenceEnter(true);
  try {
    return runSync('inferenceMode', fn);
  } finally {
    native.inferenceExit(token);
  }
}

/** Options of `autocast`. */
export interface AutocastOptions {
  /** Operators on this device are cast. Default 'cpu'. */
  device?: Device;
  /** What eligible operators compute in. Default bfloat16 on the CPU, float16 on CUDA. */
  dtype?: DType;
  /** Default true; false switches autocast off inside `fn`. */
  enabled?: boolean;
}

/** Runs `fn` with LibTorch's rules of mixed precision: matrix products in `dtype`, sums and losses in float32. */
export function autocast<R>(options: AutocastOptions, fn: () => R): R {
  assertOptions(options, 'autocast', ['device', 'dtype', 'enabled']);
  const device = assertDevice(options?.device ?? 'cpu', 'autocast');
  const type = device.startsWith('cuda') ? 'cuda' : device;
  if (type === 'meta') throw new TypeError("autocast: device must be 'cpu' or 'cuda'; got 'meta'");
  const dtype = assertDType(options?.dtype ?? (type === 'cuda' ? 'float16' : 'bfloat16'), 'autocast');
  if (dtype !== 'bfloat16' && dtype !== 'float16') {
    throw new TypeError(`autocast: dtype must be bfloat16 or float16; got ${describe(dtype)}`);
  }
  const token = native.autocastEnter(type, dtype, options?.enabled ?? true);
  try {
    return runSync('autocast', fn);
  } finally {
    native.autocastExit(token);
  }
}

/** Options of `grad` and of `Tensor.backward`. */
export interface GradOptions {
  /** Gradients of the outputs, ones for scalars by default. */
  gradOutputs?: Tensor | readonly (Tensor | null)[];
  /** Keep the graph for another pass. Default: the value of `createGraph`. */
  retainGraph?: boolean;
  /** Record the backward pass itself, for derivatives of higher order. Default false. */
  createGraph?: boolean;
  /** Give null for an input that the outputs do not depend on, instead of throwing. Default false. */
  allowUnused?: boolean;
}

/** True while a backward pass runs that leaves its graph usable; see `applyFunction`. */
let retaining = false;

/** Runs a native backward pass, telling custom functions whether their saved tensors are still needed after it. */
export function backwardPass<R>(retainGraph: boolean, run: () => R): R {
  const before = retaining;
  retaining = retainGraph;
  try {
    return run();
  } finally {
    retaining = before;
  }
}

/** Gradients given for outputs: one entry per output, null where LibTorch shall take ones. */
function gradsFor(outputs: readonly Tensor[], given: GradOptions['gradOutputs']): (Tensor | null)[] {
  if (given === undefined) return outputs.map(() => null);
  const grads = (native.isTensor(given) ? [given as Tensor] : given) as readonly (Tensor | null)[];
  if (!Array.isArray(grads) || grads.length !== outputs.length) {
    throw new TypeError(`grad: gradOutputs must have one tensor or null per output (${outputs.length})`);
  }
  return grads.map((g, i) => (g === null ? null : assertTensor(g, 'grad', `gradOutputs[${i}]`)));
}

/**
 * Gradients of (the sum of) `outputs` with respect to `inputs`, without touching anybody's `.grad`.
 * @returns one tensor per input, in order; null only with `allowUnused`
 */
export function grad(
  outputs: Tensor | readonly Tensor[],
  inputs: Tensor | readonly Tensor[],
  options: GradOptions = {},
): (Tensor | null)[] {
  assertOptions(options, 'grad', ['gradOutputs', 'retainGraph', 'createGraph', 'allowUnused']);
  const ys = assertTensors(outputs, 'grad', 'outputs');
  const xs = assertTensors(inputs, 'grad', 'inputs');
  const createGraph = options.createGraph ?? false;
  const retainGraph = options.retainGraph ?? createGraph;
  return backwardPass(
    retainGraph,
    () =>
      native.gradients(
        ys,
        xs,
        gradsFor(ys, options.gradOutputs),
        retainGraph,
        createGraph,
        options.allowUnused ?? false,
      ) as (Tensor | null)[],
  );
}

/** A differentiable function written in JavaScript. */
export interface CustomFunction {
  /** Appears as `gradFn` of the outputs. Default 'CustomFunction'. */
  name?: string;
  /** Computes the outputs; runs without a graph. */
  forward(...inputs: Tensor[]): Tensor | Tensor[];
  /**
   * Gradients of the inputs from those of the outputs: one per input, null for none. A gradient of an output that was
   * not used is null. `outputs` are the values of the forward pass, outside the graph.
   */
  backward(
    gradOutputs: (Tensor | null)[],
    inputs: readonly Tensor[],
    outputs: readonly Tensor[],
  ): Tensor | null | readonly (Tensor | null)[];
}

/**
 * Applies a custom differentiable function.
 * @returns what `forward` returned, connected to the graph: a tensor, or an array of tensors
 * @example const y = applyFunction({ forward: (x) => x.exp(), backward: ([g], _, [y]) => g.mul(y) }, [x])
 */
export function applyFunction(fn: CustomFunction, inputs: readonly Tensor[]): Tensor | Tensor[] {
  if (typeof fn?.forward !== 'function' || typeof fn.backward !== 'function') {
    throw new TypeError('applyFunction: expected an object with forward and backward functions');
  }
  if (!Array.isArray(inputs)) throw new TypeError(`applyFunction: inputs must be an array; got ${describe(inputs)}`);
  const xs = assertTensors(inputs, 'applyFunction', 'inputs');
  const result = noGrad(() => fn.forward(...xs));
  const ys = assertTensors(result, 'applyFunction', 'result of forward');
  if (!native.gradMode() || !xs.some((x) => x.requiresGrad)) return result;

  // Second handles, outside of every scope, so that the backward pass may run after the scope of the forward pass is
  // closed. They share memory with the originals and are freed as soon as the graph is.
  // (An alias of an input stays connected, for derivatives of higher order.)
  const saved = [...xs.map((x) => x.alias()), ...ys.map((y) => y.detach())];
  for (const tensor of saved) native.keep(tensor);
  const outputs = native.customFunction(fn.name ?? 'CustomFunction', xs, ys, (grads) => {
    const gradients = fn.backward(grads as (Tensor | null)[], saved.slice(0, xs.length), saved.slice(xs.length));
    if (!retaining) for (const tensor of saved) native.free(tensor);
    const list = (Array.isArray(gradients) ? gradients : [gradients]) as (Tensor | null | undefined)[];
    if (list.length !== xs.length) {
      throw new TypeError(`${fn.name ?? 'applyFunction'}: backward must return ${xs.length} gradients, one per input`);
    }
    return list.map((g, i) => (g ? assertTensor(g, 'applyFunction', `gradient ${i}`) : null));
  }) as Tensor[];
  return Array.isArray(result) ? outputs : (outputs[0] as Tensor);
}
