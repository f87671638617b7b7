/** Sizes that cannot be: refused at once, without walking through them and without asking for the memory. */
import { describe, expect, test } from 'vitest';
import {
  aten,
  call,
  fromTypedArray,
  grad,
  hasImageSuffix,
  isInvertible,
  ones,
  randperm,
  selectSites,
  step,
  tensor,
  TorchError,
  transforms,
  writeNpz,
  zeros,
} from '../../lib/index.js';
import type { Rule } from '../../lib/index.js';

const endless = (): never[] => new Array<never>(2 ** 32 - 1);

describe('an array of 2^32 - 1 holes', () => {
  const calls: Readonly<Record<string, () => unknown>> = {
    zeros: () => zeros(endless()),
    tensor: () => tensor(endless()),
    fromTypedArray: () => fromTypedArray(new Float32Array(1), endless()),
    cat: () => aten.cat(endless(), 0),
    view: () => ones([2]).view(endless()),
    indices: () => ones([2]).setIndex_(endless(), 1),
    'lists of optional tensors': () => aten.index(ones([2]), endless()),
    'one overload': () => call('aten::cat', endless(), 0),
    grad: () => grad(endless(), endless()),
    isInvertible: () => isInvertible(endless()),
    hasImageSuffix: () => hasImageSuffix(endless() as unknown as string),
    selectSites: () => selectSites({ at: endless() } as unknown as Rule, []),
    normalize: () => transforms.normalize(endless(), [1]),
    'steps of a schedule': () => step({ at: endless() }),
    writeNpz: () => {
      writeNpz('never-written.npz', endless());
    },
  };
  test.each(Object.keys(calls))('%s', (name) => {
    const start = performance.now();
    expect(calls[name]!).toThrow(Error);
    expect(performance.now() - start).toBeLessThan(5000);
  });
});

describe('memory that is not there', () => {
  const big = 2 ** 42;
  const calls: Readonly<Record<string, () => unknown>> = {
    zeros: () => zeros([big]),
    randperm: () => randperm(2 ** 40),
    operator: () => aten.full([big], 1),
    'a copy of an expanded tensor': () => ones([1]).expand([big]).contiguous(),
    data: () => ones([1]).expand([big]).data(),
    product: () => ones([2 ** 21, 1]).mm(ones([1, 2 ** 21])),
  };
  test.each(Object.keys(calls))('%s: an error, and the next call works', (name) => {
    expect(calls[name]!).toThrow(TorchError);
    expect(zeros([3]).tolist()).toEqual([0, 0, 0]);
  });

  test('nested arrays of too many elements', () => {
    expect(() => ones([1]).expand([2 ** 30]).tolist()).toThrow(RangeError); // prettier-ignore
    expect(String(ones([1]).expand([2 ** 40]))).toMatch(/^tensor\(\[1\., 1\., 1\., +\.\.\., 1\., 1\., 1\.\]\)$/);
  });
});
