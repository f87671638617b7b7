import { describe, expect, test } from 'vitest';
import type { Tensor } from '../../lib/tensor/index.js';
import { aten, call, keep, memory, ones, scope, tensor, zeros } from '../../lib/tensor/index.js';
import { settledMemory } from '../support/settled_memory.js';

const megabytes = () => process.memoryUsage.rss() / 2 ** 20;

describe('scope', () => {
  test('frees what was made inside and gives back what is returned', () => {
    let inner: Tensor | undefined;
    const before = settledMemory().tensors;
    const result = scope(() => {
      inner = ones([4]);
      return inner.add(1);
    });
    expect(inner?.isFreed).toBe(true);
    expect(result.tolist()).toEqual([2, 2, 2, 2]);
    expect(memory().tensors).toBe(before + 1);
    result.dispose();
    expect(memory().tensors).toBe(before);
  });

  test('survivors are found in arrays, objects, Maps and Sets, at any depth', () => {
    const cyclic: Record<string, unknown> = {};
    const r = scope(() => {
      cyclic.self = cyclic;
      cyclic.tensor = ones([1]);
      return {
        list: [ones([1]), [ones([1]), 'text', null]],
        map: new Map<unknown, unknown>([['a', ones([1])], [ones([1]), { deep: ones([1]) }]]), // prettier-ignore
        set: new Set([ones([1])]),
        bare: Object.assign(Object.create(null) as object, { x: ones([1]) }),
        cyclic,
      };
    });
    const [first, second] = r.list as [Tensor, [Tensor, string, null]];
    const keys = [...r.map.keys()];
    const all = [
      first,
      second[0],
      r.map.get('a'),
      keys[1],
      (r.map.get(keys[1]) as { deep: Tensor }).deep,
      [...r.set][0],
      r.bare.x,
      cyclic.tensor,
    ] as Tensor[];
    expect(all.map((t) => t.isFreed)).toEqual(all.map(() => false));
  });

  test('instances of other classes are not searched', () => {
    class Box {
      constructor(readonly tensor: Tensor) {}
    }
    expect(scope(() => new Box(ones([1]))).tensor.isFreed).toBe(true);
  });

  test('scopes nest: a survivor belongs to the enclosing one', () => {
    let middle: Tensor | undefined;
    const outer = scope(() => {
      middle = scope(() => ones([2]).mul(3));
      expect(middle.tolist()).toEqual([3, 3]);
      return middle.add(1);
    });
    expect(middle?.isFreed).toBe(true);
    expect(outer.tolist()).toEqual([4, 4]);
  });

  test('keep takes a tensor out of every scope', () => {
    let kept: Tensor | undefined;
    scope(() => {
      scope(() => {
        kept = keep(ones([2]));
      });
    });
    expect(kept?.tolist()).toEqual([1, 1]);
    expect(() => keep([] as unknown as Tensor)).toThrow(/keep: tensor must be a Tensor/);
  });

  test('tensors from outside are untouched, also when returned', () => {
    const outside = ones([2]);
    expect(scope(() => outside)).toBe(outside);
    scope(() => outside.add_(1));
    expect(outside.tolist()).toEqual([2, 2]);
  });

  test('a throw frees everything and leaves the outer scope intact', () => {
    const made: Tensor[] = [];
    const survivor = scope(() => {
      const x = ones([1]);
      expect(() =>
        scope(() => {
          made.push(ones([1]));
          throw new Error('inside');
        }),
      ).toThrow('inside');
      expect(made[0]?.isFreed).toBe(true);
      return x.add(1);
    });
    expect(survivor.item()).toBe(2);
  });

  test('a freed tensor in the result is no harm', () => {
    const [x] = scope(() => {
      const t = ones([1]);
      t.dispose();
      return [t];
    });
    expect(x?.isFreed).toBe(true);
  });

  test('asynchronous functions are refused, before they run where possible', () => {
    let ran = false;
    expect(() =>
      scope(async () => {
        ran = true;
        await Promise.resolve();
      }),
    ).toThrow(/scope: the function must be synchronous/);
    expect(ran).toBe(false);
    let made: Tensor | undefined;
    expect(() =>
      scope(() => {
        made = ones([1]);
        return Promise.reject(new Error('lost'));
      }),
    ).toThrow(TypeError);
    expect(made?.isFreed).toBe(true);
    expect(() => scope(5 as unknown as () => void)).toThrow(/scope: expected a function; got 5/);
    // None of this leaves a scope open.
    expect(scope(() => ones([1])).item()).toBe(1);
  });
});

describe('explicit release', () => {
  test('using frees at the end of the block', () => {
    let seen: Tensor;
    {
      using x = ones([3]);
      seen = x;
      expect(x.isFreed).toBe(false);
    }
    expect(seen.isFreed).toBe(true);
  });

  test('freed tensors throw, say why, and may be freed again', () => {
    const x = ones([3]);
    const y = ones([3]);
    x.dispose();
    x.dispose();
    const uses: [string, () => unknown][] = [
      ['method', () => x.add(1)],
      ['argument', () => y.add(x)],
      ['in a list', () => aten.cat([y, x])],
      ['shape', () => x.shape],
      ['dtype', () => x.dtype],
      ['item', () => x.item()],
      ['data', () => x.data()],
      ['tolist', () => x.tolist()],
      ['to', () => x.to('float64')],
      ['index', () => x.index(0)],
      ['setIndex_', () => x.setIndex_([0], 1)],
      ['assignment of', () => y.setIndex_([0], x)],
      ['backward', () => x.backward()],
      ['grad', () => x.grad],
      ['requiresGrad', () => x.requiresGrad_()],
      ['keep', () => keep(x)],
      ['print', () => x.toString()],
      ['setData', () => y.setData(x)],
    ];
    for (const [name, use] of uses) {
      expect(use, name).toThrow(Error);
      expect(use, name).toThrow(/freed/);
    }
    expect(y.tolist()).toEqual([1, 1, 1]);
  });

  test('memory that views share stays while one of them lives', () => {
    const x = ones([10]);
    const view = x.slice(0, 2, 4);
    x.dispose();
    expect(view.tolist()).toEqual([1, 1]);
  });
});

describe('memory', () => {
  test('counts tensors, and shared storages once', () => {
    const before = settledMemory();
    const x = zeros([1000]);
    const y = x.view([10, 100]);
    const after = memory();
    expect(after.tensors - before.tensors).toBe(2);
    expect(after.bytes - before.bytes).toBe(4000);
    x.dispose();
    expect(memory().bytes - before.bytes).toBe(4000);
    y.dispose();
    expect(memory()).toEqual(before);
  });

  test('meta tensors take none, whatever their size', () => {
    const before = settledMemory();
    const x = call('aten::empty', [2n ** 62n], { dtype: 'uint8', device: 'meta' });
    expect(memory()).toEqual({ tensors: before.tensors + 1, bytes: before.bytes });
    x.dispose();
  });

  test('500,000 small tensors outside of any scope, without a turn of the event loop', () => {
    let x = tensor([1, 2]);
    for (let i = 0; i < 50_000; i++) x = x.add(1);
    const before = megabytes();
    for (let i = 0; i < 500_000; i++) x = x.add(1);
    expect(x.tolist()).toEqual([550_001, 550_002]);
    expect(megabytes() - before).toBeLessThan(150);
  }, 120_000);

  test('large tensors outside of any scope', () => {
    let x = zeros([2 ** 18]);
    for (let i = 0; i < 100; i++) x = x.add(1);
    const before = megabytes();
    for (let i = 0; i < 800; i++) x = x.add(1);
    expect(x.index(0).item()).toBe(900);
    expect(megabytes() - before).toBeLessThan(400);
  });

  test('a scoped loop needs the same memory always', () => {
    const w = tensor([[1, 2], [3, 4]], { requiresGrad: true }); // prettier-ignore
    const step = () => scope(() => w.matmul(w).sum().backward());
    for (let i = 0; i < 2000; i++) step();
    const live = settledMemory().tensors;
    const before = megabytes();
    for (let i = 0; i < 20_000; i++) step();
    expect(memory().tensors).toBeLessThanOrEqual(live + 1);
    expect(megabytes() - before).toBeLessThan(50);
  });
});
