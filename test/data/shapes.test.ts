import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Shapes, shapesTasks, type ShapesTask } from '../../lib/data/index.js';

const tasks = Object.keys(shapesTasks) as ShapesTask[];
const hash = (dataset: Shapes): string => {
  const sum = createHash('sha256');
  for (let i = 0; i < dataset.length; i++) sum.update(dataset.load(i).data as Uint8Array);
  return sum.digest('hex').slice(0, 16);
};

describe('Shapes', () => {
  it('is the same everywhere: pinned pictures of every task', () => {
    expect(Object.fromEntries(tasks.map((task) => [task, hash(new Shapes({ task, count: 20, seed: 1 }))])))
      .toMatchInlineSnapshot(`
      {
        "color": "e1ea8173ec642368",
        "count": "15eced2780ffd204",
        "position": "6de24e708479ddf7",
        "rotation": "b3e83b0bfa6b8206",
        "shape": "b4857af7e35ecd22",
        "size": "0cf40aef25c868eb",
        "texture": "070dd36a9ba09085",
      }
    `);
    expect(hash(new Shapes({ task: 'shape', count: 3, size: 64 }))).toMatchInlineSnapshot(`"7c1a8c3d2729aa9f"`);
  });

  it('an image depends on its number and the seed, not on the count or the order of loading', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...tasks),
        fc.nat(30),
        fc.integer({ min: 16, max: 40 }),
        fc.integer({ min: -5, max: 1e9 }),
        (task, index, size, seed) => {
          const long = new Shapes({ task, count: 200, size, seed });
          const short = new Shapes({ task, count: index + 1, size, seed });
          const image = long.load(index);
          expect(image).toMatchObject({ width: size, height: size, channels: 3 });
          expect(image.data).toHaveLength(size * size * 3);
          expect(short.load(index)).toEqual(image);
          expect(short.labels[index]).toBe(long.labels[index]);
          expect(new Shapes({ task, count: 200, size, seed: seed + 1 }).load(index)).not.toEqual(image);
        },
      ),
      { numRuns: 60 },
    );
  });

  it.each(tasks)('%s: classes are balanced, labels are what attributes say, the rest varies', (task) => {
    const dataset = new Shapes({ task, count: 720, seed: 2 });
    const { classNames } = dataset;
    expect(classNames).toEqual(shapesTasks[task]);
    const counts = classNames.map((_, label) => dataset.labels.filter((l) => l === label).length);
    expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1);
    const shown = Array.from({ length: 720 }, (_, i) => dataset.attributes(i));
    shown.forEach((attributes, i) => expect(attributes[task]).toBe(classNames[dataset.labels[i]!]));
    for (const other of tasks.filter((t) => t !== task && t !== 'count')) {
      // Every class of the task meets at least three values of each other attribute, about evenly: no shortcut.
      for (const name of classNames.slice(0, 2)) {
        const values = shown.filter((a) => a[task] === name).map((a) => a[other]);
        const distinct = new Set(values).size;
        expect(distinct).toBeGreaterThanOrEqual(task === 'texture' && other === 'size' ? 2 : 3);
        for (const value of new Set(values))
          expect(values.filter((v) => v === value).length).toBeLessThan((2.2 * values.length) / distinct);
      }
    }
  });

  it('shows the attributes: where the object is, how large, in which color', () => {
    // Without clutter the object is what is far from its surroundings in color; on average over many images the picture
    // of an attribute must follow its class.
    const colored = new Shapes({ task: 'color', count: 400, clutter: 0 });
    const redness = ['red', 'green', 'blue'].map((name) => {
      const label = colored.classNames.indexOf(name);
      const sum = [0, 0, 0];
      for (let i = 0; i < colored.length; i++) {
        if (colored.labels[i] !== label) continue;
        const { data } = colored.load(i);
        for (let k = 0; k < data.length; k++) sum[k % 3]! += data[k]!;
      }
      return sum.indexOf(Math.max(...sum));
    });
    expect(redness).toEqual([0, 1, 2]);

    const sized = new Shapes({ task: 'size', count: 400, clutter: 0 });
    const saturated = (i: number): number => {
      const { data } = sized.load(i);
      let count = 0;
      for (let k = 0; k < data.length; k += 3) {
        const [r, g, b] = [data[k]!, data[k + 1]!, data[k + 2]!];
        if (Math.max(r, g, b) > 150 && Math.min(r, g, b) < 0.35 * Math.max(r, g, b)) count++;
      }
      return count;
    };
    const means = sized.classNames.map((_, label) => {
      const members = Array.from({ length: 400 }, (__, i) => i).filter((i) => sized.labels[i] === label);
      return members.reduce((sum, i) => sum + saturated(i), 0) / members.length;
    });
    expect(means).toEqual(means.toSorted((a, b) => a - b));
    expect(means[3]! / means[0]!).toBeGreaterThan(2);
  });

  it('is fast enough for docs and tests', () => {
    const dataset = new Shapes({ task: 'shape', count: 2000 });
    const start = performance.now();
    for (let i = 0; i < 2000; i++) dataset.load(i);
    // About 1.2 s alone on one core; the bound leaves room for a busy machine.
    expect(performance.now() - start).toBeLessThan(12_000);
  });

  it.each([
    [{ task: 'smell', count: 3 }, /unknown task "smell"; expected one of shape, texture/],
    [{ task: 'shape', count: 0 }, /count/],
    [{ task: 'shape', count: 3, size: 8 }, /size/],
    [{ task: 'shape', count: 3, clutter: -1 }, /clutter/],
    [{ task: 'shape', count: 3, seed: 0.5 }, /safe integer/],
  ])('refuses %j', (o, message) => {
    expect(() => new Shapes(o as never)).toThrow(message);
  });

  it('refuses an index outside', () => {
    const dataset = new Shapes({ task: 'shape', count: 3 });
    expect(() => dataset.load(3)).toThrow(RangeError);
    expect(dataset.describe(1)).toBe('shapes/shape/seed 0/image 1');
  });
});
