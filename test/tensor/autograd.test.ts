import { describe, expect, test } from 'vitest';
import {
  applyFunction,
  aten,
  autocast,
  enableGrad,
  grad,
  inferenceMode,
  isGradEnabled,
  memory,
  noGrad,
  ones,
  scope,
  tensor,
  TorchError,
  zeros,
} from '../../lib/tensor/index.js';
import type { CustomFunction, Tensor } from '../../lib/tensor/index.js';
import { settledMemory } from '../support/settled_memory.js';

const leaf = (values: number[]) => tensor(values, { dtype: 'float64', requiresGrad: true });

// (A function, because TypeScript believes that a property set to null stays null.)
const gradOf = (x: Tensor) => x.grad?.tolist() ?? null;

describe('backward', () => {
  test('accumulates into the leaves', () => {
    const x = leaf([1, 2, 3]);
    x.mul(x).sum().backward();
    expect(x.grad?.tolist()).toEqual([2, 4, 6]);
    x.sum().backward();
    expect(x.grad?.tolist()).toEqual([3, 5, 7]);
    x.grad = null;
    expect(gradOf(x)).toBeNull();
    x.mul(2).backward(tensor([1, 10, 100], { dtype: 'float64' }));
    expect(gradOf(x)).toEqual([2, 20, 200]);
  });

  test('inputs limits where gradients go', () => {
    const [x, y] = [leaf([1]), leaf([2])];
    x.mul(y).backward(null, { inputs: [y] });
    expect([x.grad, y.grad?.tolist()]).toEqual([null, [1]]);
  });

  test('a second pass needs retainGraph', () => {
    const x = leaf([2]);
    const y = x.pow(3).sum();
    y.backward(undefined, { retainGraph: true });
    y.backward();
    expect(x.grad?.tolist()).toEqual([24]);
    expect(() => y.backward()).toThrow(TorchError);
    expect(() => y.backward()).toThrow(/second time/);
  });

  test('createGraph makes gradients differentiable', () => {
    const x = leaf([2]);
    x.pow(3).sum().backward(null, { createGraph: true });
    const g = x.grad as Tensor;
    expect(g.requiresGrad).toBe(true);
    x.grad = null;
    g.sum().backward();
    expect(gradOf(x)).toEqual([12]);
    x.grad = null;
  });

  test('refusals', () => {
    const x = leaf([1, 2]);
    expect(() => x.mul(2).backward()).toThrow(/scalar outputs/);
    expect(() => ones([1]).backward()).toThrow(/does not require grad/);
    expect(() => x.mul(2).backward(ones([3]))).toThrow(Error);
    expect(() => x.sum().backward(5 as unknown as Tensor)).toThrow(/backward: gradient must be a Tensor; got 5/);
    expect(() => x.sum().backward(null, { retain: true } as object)).toThrow(/unknown option 'retain'/);
    expect(() => x.add_(1)).toThrow(/leaf/);
  });

  test('flags of tensors', () => {
    const x = leaf([1]);
    const y = x.mul(2);
    expect([x.isLeaf, y.isLeaf, x.gradFn, y.gradFn]).toEqual([
      true,
      false,
      null,
      expect.stringMatching(/^MulBackward/),
    ]);
    y.retainGrad();
    y.sum().backward();
    expect(y.grad?.tolist()).toEqual([1]);
    expect(y.detach().requiresGrad).toBe(false);
    expect(x.requiresGrad_(false)).toBe(x);
    expect(x.requiresGrad).toBe(false);
    x.requiresGrad = true;
    expect(x.mul(1).requiresGrad).toBe(true);
    expect(() => y.requiresGrad_(false)).toThrow(/leaf|leaves/);
    expect(() => {
      x.grad = ones([5]);
    }).toThrow(Error);
    expect(() => {
      x.grad = 5 as unknown as Tensor;
    }).toThrow(TypeError);
  });
});

describe('grad', () => {
  test('leaves .grad alone', () => {
    const [x, y] = [leaf([3]), leaf([4])];
    const [gx, gy] = grad(x.mul(y), [x, y]);
    expect([gx?.tolist(), gy?.tolist(), x.grad]).toEqual([[4], [3], null]);
  });

  test('higher orders', () => {
    const x = leaf([2]);
    const [first] = grad(x.pow(4), x, { createGraph: true });
    const [second] = grad(first as Tensor, x, { createGraph: true });
    const [third] = grad(second as Tensor, x);
    expect([first, second, third].map((t) => t?.item())).toEqual([32, 48, 48]);
  });

  test('unused inputs', () => {
    const [x, y] = [leaf([1]), leaf([1])];
    expect(() => grad(x.mul(2), [x, y])).toThrow(/not to have been used|unused/);
    const [gx, gy] = grad(x.mul(2), [x, y], { allowUnused: true });
    expect([gx?.tolist(), gy]).toEqual([[2], null]);
  });

  test('gradients of outputs', () => {
    const x = leaf([1, 2]);
    const weights = tensor([5, 7], { dtype: 'float64' });
    expect(grad(x.mul(2), x, { gradOutputs: weights })[0]?.tolist()).toEqual([10, 14]);
    expect(grad([x.mul(2), x.sum()], x, { gradOutputs: [weights, null] })[0]?.tolist()).toEqual([11, 15]);
    expect(() => grad(x.mul(2), x, { gradOutputs: [] })).toThrow(/one tensor or null per output \(1\)/);
    expect(() => grad(5 as unknown as Tensor, x)).toThrow(/grad: outputs must be a Tensor or an array/);
  });
});

describe('hooks', () => {
  test('see the gradient, may replace it, and can be removed', () => {
    const x = leaf([1, 2]);
    const seen: unknown[] = [];
    const remove = x.registerHook((g) => {
      seen.push(g.tolist());
      return g.mul(10);
    });
    x.mul(3).sum().backward();
    expect(seen).toEqual([[3, 3]]);
    expect(x.grad?.tolist()).toEqual([30, 30]);
    remove();
    remove();
    x.sum().backward();
    expect(x.grad?.tolist()).toEqual([31, 31]);
    expect(seen.length).toBe(1);
  });

  test('work on intermediate results', () => {
    const x = leaf([1]);
    const y = x.mul(2);
    y.registerHook(() => undefined);
    y.registerHook((g) => g.mul(5));
    y.mul(3).sum().backward();
    expect(x.grad?.tolist()).toEqual([30]);
  });

  test('an error inside reaches the caller of backward', () => {
    const x = leaf([1]);
    x.registerHook(() => {
      throw new RangeError('from the hook');
    });
    expect(() => x.mul(2).sum().backward()).toThrow(new RangeError('from the hook'));
    expect(() => x.registerHook('no' as unknown as () => void)).toThrow(/registerHook: expected a function/);
    x.requiresGrad_(false);
    expect(() => ones([1]).registerHook(() => undefined)).toThrow(/require/);
  });

  test('a hook that returns something else is refused', () => {
    const x = leaf([1]);
    x.registerHook((() => 5) as unknown as () => undefined);
    expect(() => x.mul(2).sum().backward()).toThrow(TypeError);
  });
});

describe('modes', () => {
  test('noGrad and enableGrad nest and are restored after a throw', () => {
    const x = leaf([1]);
    expect(isGradEnabled()).toBe(true);
    noGrad(() => {
      expect([isGradEnabled(), x.mul(2).requiresGrad]).toEqual([false, false]);
      enableGrad(() => expect(x.mul(2).requiresGrad).toBe(true));
      expect(isGradEnabled()).toBe(false);
      expect(() =>
        enableGrad(() => {
          throw new Error('x');
        }),
      ).toThrow('x');
      expect(isGradEnabled()).toBe(false);
    });
    expect(isGradEnabled()).toBe(true);
    expect(() => noGrad(async () => Promise.resolve(1))).toThrow(/noGrad: the function must be synchronous/);
    expect(() => noGrad(() => Promise.resolve(1))).toThrow(TypeError);
    expect(isGradEnabled()).toBe(true);
  });

  test('inference tensors stay out of autograd', () => {
    const x = leaf([1]);
    const y = inferenceMode(() => x.mul(2));
    expect([y.requiresGrad, y.tolist()]).toEqual([false, [2]]);
    expect(() => y.mul(x)).toThrow(/[Ii]nference tensors/);
    expect(x.mul(2).requiresGrad).toBe(true);
    expect(() =>
      inferenceMode(() => {
        throw new Error('x');
      }),
    ).toThrow('x');
    expect(x.mul(2).requiresGrad).toBe(true);
    expect(() => inferenceMode(async () => Promise.resolve(1))).toThrow(TypeError);
  });

  test('autocast computes products in the lower precision', () => {
    const x = ones([4, 4], { requiresGrad: true });
    const inside = autocast({ device: 'cpu', dtype: 'bfloat16' }, () => x.mm(x));
    expect(inside.dtype).toBe('bfloat16');
    expect(x.mm(x).dtype).toBe('float32');
    expect(autocast({}, () => x.mm(x)).dtype).toBe('bfloat16');
    expect(autocast({ enabled: false }, () => x.mm(x)).dtype).toBe('float32');
    expect(autocast({}, () => autocast({ enabled: false }, () => x.mm(x))).dtype).toBe('float32');
    inside.float().sum().backward();
    expect(x.grad?.dtype).toBe('float32');
    expect(() => autocast({ dtype: 'float64' }, () => 1)).toThrow(/bfloat16 or float16/);
    expect(() => autocast({ device: 'meta' }, () => 1)).toThrow(TypeError);
    expect(() => autocast({}, async () => Promise.resolve(1))).toThrow(TypeError);
    expect(x.mm(x).dtype).toBe('float32');
  });
});

describe('applyFunction', () => {
  const cube: CustomFunction = {
    name: 'Cube',
    forward: (x: Tensor) => x.pow(3),
    backward: ([g], [x]) =>
      (g as Tensor)
        .mul(3)
        .mul(x as Tensor)
        .mul(x as Tensor),
  };

  test('a custom function is differentiated by its own rule', () => {
    const x = leaf([1, 2]);
    const y = applyFunction(cube, [x]) as Tensor;
    expect([y.tolist(), y.gradFn]).toEqual([[1, 8], expect.stringContaining('Cube')]);
    y.sum().backward();
    expect(x.grad?.tolist()).toEqual([3, 12]);
  });

  test('several inputs and outputs, unused ones are null', () => {
    const [x, y] = [leaf([2]), leaf([5])];
    const seen: unknown[] = [];
    const [sum, product] = applyFunction(
      {
        forward: (a: Tensor, b: Tensor) => [a.add(b), a.mul(b)],
        backward: ([gs, gp], [a, b], [s, p]) => {
          seen.push(gs, s?.item(), p?.item());
          return [(gp as Tensor).mul(b as Tensor), (gp as Tensor).mul(a as Tensor)];
        },
      },
      [x, y],
    ) as Tensor[];
    expect(sum?.item()).toBe(7);
    product?.backward();
    expect(seen).toEqual([null, 7, 10]);
    expect([x.grad?.item(), y.grad?.item()]).toEqual([5, 2]);
  });

  test('twice, with retainGraph, and derivatives of higher order', () => {
    const x = leaf([2]);
    const y = applyFunction(cube, [x]) as Tensor;
    y.backward(null, { retainGraph: true });
    y.backward();
    expect(x.grad?.item()).toBe(24);
    const [g] = grad(applyFunction(cube, [x]), x, { createGraph: true });
    expect(grad(g as Tensor, x)[0]?.item()).toBe(12);
  });

  test('backward may run after the scope of forward, and frees what was saved', () => {
    const x = leaf([2]);
    const before = settledMemory().tensors;
    const y = scope(() => (applyFunction(cube, [x.mul(1)]) as Tensor).mul(2));
    y.backward();
    expect(x.grad?.item()).toBe(24);
    y.dispose();
    x.grad = null;
    expect(memory().tensors - before).toBeLessThanOrEqual(6);
  });

  test('without a graph it is just forward', () => {
    const x = leaf([2]);
    expect(noGrad(() => applyFunction(cube, [x]) as Tensor).gradFn).toBeNull();
    expect((applyFunction(cube, [zeros([1])]) as Tensor).requiresGrad).toBe(false);
  });

  test('errors inside and wrong results', () => {
    const x = leaf([2, 3]);
    const bad = (backward: CustomFunction['backward']) => (applyFunction({ ...cube, backward }, [x]) as Tensor).sum();
    expect(() =>
      bad(() => {
        throw new SyntaxError('inside');
      }).backward(),
    ).toThrow(new SyntaxError('inside'));
    expect(() => bad(() => []).backward()).toThrow(/backward must return 1 gradients/);
    expect(() => bad(() => 5 as unknown as Tensor).backward()).toThrow(/gradient 0 must be a Tensor; got 5/);
    expect(() => bad(() => ones([3, 0])).backward()).toThrow(TorchError);
    expect(() => applyFunction({} as CustomFunction, [x])).toThrow(/forward and backward functions/);
    expect(() => applyFunction(cube, x as unknown as Tensor[])).toThrow(/inputs must be an array/);
    expect(() => applyFunction({ ...cube, forward: () => 5 as unknown as Tensor }, [x])).toThrow(/result of forward/);
  });
});

test('gradients agree with finite differences', () => {
  const x = leaf([0.3, -0.7, 1.1]);
  const f = (t: Tensor) =>
    aten
      .logSoftmax(t.tanh().mul(t), 0)
      .exp()
      .mul(tensor([1, 2, 3], { dtype: 'float64' }))
      .sum();
  const [g] = grad(f(x), x);
  const numeric = [0, 1, 2].map((i) => {
    const at = (h: number) =>
      noGrad(() =>
        f(
          x
            .detach()
            .clone()
            .setIndex_([i], (x.tolist() as number[])[i]! + h),
        ).item(),
      );
    return ((at(1e-6) as number) - (at(-1e-6) as number)) / 2e-6;
  });
  (g?.tolist() as number[]).forEach((v, i) => expect(v).toBeCloseTo(numeric[i] as number, 7));
});
