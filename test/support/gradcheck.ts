import { grad, noGrad, randn, scope, type Tensor, tensor } from '../../lib/tensor/index.js';

/** Tolerances of `gradcheck`. */
export interface GradcheckOptions {
  /** Step of the central difference. Default 1e-6. */
  readonly step?: number;
  /** Allowed absolute error. Default 1e-6. */
  readonly atol?: number;
  /** Allowed relative error. Default 1e-4. */
  readonly rtol?: number;
}

/**
 * Compares the gradients of sum(f(inputs) * cotangent), for a random cotangent, with central differences. Inputs that
 * require a gradient must be float64 leaves; every element of each is checked.
 *
 * @throws Error that names the first input and element that differ
 */
export function gradcheck(
  f: (...inputs: Tensor[]) => Tensor,
  inputs: readonly Tensor[],
  { step = 1e-6, atol = 1e-6, rtol = 1e-4 }: GradcheckOptions = {},
): void {
  const checked = inputs.filter((input) => input.requiresGrad);
  if (checked.length === 0) throw new Error('gradcheck: no input requires a gradient');
  const cotangent = randn(f(...inputs).shape, { dtype: 'float64' });
  // With a graph, since f may itself differentiate.
  const value = (): number =>
    scope(() =>
      Number(
        f(...inputs)
          .mul(cotangent)
          .sum()
          .item(),
      ),
    );
  const gradients = grad(
    [
      f(...inputs)
        .mul(cotangent)
        .sum(),
    ],
    checked,
    { allowUnused: true },
  );
  checked.forEach((input, which) => {
    if (input.dtype !== 'float64') throw new Error(`gradcheck: input ${which} is ${input.dtype}, not float64`);
    const analytic = gradients[which]?.data() as Float64Array | undefined;
    const original = input.data() as Float64Array;
    original.forEach((x, i) => {
      const at = (moved: number): number => {
        const values = Float64Array.from(original);
        values[i] = moved;
        noGrad(() => input.copy_(tensor(values, { shape: input.shape, dtype: 'float64' })));
        return value();
      };
      const numeric = (at(x + step) - at(x - step)) / (2 * step);
      const given = analytic?.[i] ?? 0;
      if (!(Math.abs(given - numeric) <= atol + rtol * Math.abs(numeric))) {
        throw new Error(`gradcheck: element ${i} of input ${which} has gradient ${given}, differences give ${numeric}`);
      }
    });
    noGrad(() => input.copy_(tensor(original, { shape: input.shape, dtype: 'float64' })));
  });
}

/** ‖a - b‖ / ‖b‖ in float64. */
export function relativeError(a: Tensor, b: Tensor): number {
  return scope(() => {
    const reference = b.detach().to('float64');
    const difference = a.detach().to('float64').sub(reference);
    return Number(difference.norm().item()) / (Number(reference.norm().item()) + 1e-30);
  });
}
