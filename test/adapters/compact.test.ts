/** Quantized layers, and the compact files of adapters that are made of them. */
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import {
  compactLayout,
  decodeCompact,
  encodeCompact,
  graft,
  loadCompact,
  readCompactSettings,
  saveCompact,
} from '../../lib/adapters/index.js';
import { type Backbone, createCustomModel } from '../../lib/models/index.js';
import { codebook, Context, QuantizedLinear } from '../../lib/nn/index.js';
import { grad, manualSeed, noGrad, randn, type Tensor, tensor, withDefaults } from '../../lib/tensor/index.js';
import { randomize } from '../models/tiny.js';
import { gradcheck } from '../support/gradcheck.js';

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-compact-'));
afterAll(() => rmSync(folder, { recursive: true }));

const vit = (): Backbone => {
  manualSeed(5);
  const options = { imgSize: 16, patchSize: 4, embedDim: 24, depth: 3, numHeads: 3, numClasses: 5 };
  return randomize(createCustomModel('vit', options)).eval();
};
const x = randn([2, 3, 16, 16]);
const output = (model: Backbone): Tensor => noGrad(() => model.eval().run(x));
const far = (a: Tensor, b: Tensor): number => Number(a.sub(b).norm().item()) / Number(b.norm().item());

describe('the codebook', () => {
  test('has the published values of 1 and 2 bits', () => {
    expect([...codebook(1).values]).toEqual([-0.6744897365570068, 0.6744897365570068]);
    expect([...codebook(1).thresholds]).toEqual([0]);
    const two = [...codebook(2).values];
    [-1.26572037, -0.37775415, 0.37775415, 1.26572037].forEach((value, i) => expect(two[i]).toBeCloseTo(value, 7));
  });

  test.each([1, 2, 4, 8])('of %i bits rises, and every border lies between two values', (bits) => {
    const { values, thresholds } = codebook(bits);
    expect(values).toHaveLength(2 ** bits);
    thresholds.forEach((border, i) => {
      expect(border).toBeGreaterThan(values[i] as number);
      expect(border).toBeLessThan(values[i + 1] as number);
    });
  });

  test('other numbers of bits are refused', () => {
    expect(() => codebook(3)).toThrow(/1, 2, 4 or 8 bits per weight, not 3/);
    expect(() => new QuantizedLinear(1, 1, { bits: 1 })).toThrow(/no standard deviation/);
  });
});

describe('a quantized layer', () => {
  // A latent weight of even distribution, as at the start; the code is made for a normal one.
  test.each([
    [1, 0.65],
    [2, 0.35],
    [4, 0.1],
    [8, 0.05],
  ] as const)('of %i bits has that many values at most, within %d of its latent weight', (bits, distance) => {
    manualSeed(1);
    const layer = new QuantizedLinear(40, 30, { bits });
    const weight = layer.effectiveWeight().detach();
    const distinct = new Set(Array.from(weight.flatten().data(), Number));
    expect(distinct.size).toBeGreaterThan(1);
    expect(distinct.size).toBeLessThanOrEqual(2 ** bits);
    expect(far(weight, layer.weight.detach())).toBeLessThan(distance);
    expect(layer.run(randn([2, 40]), new Context()).shape).toEqual([2, 30]);
  });

  test('has the gradient of the same formula with the rounding taken for a constant', () => {
    withDefaults({ dtype: 'float64' }, () => {
      manualSeed(2);
      const layer = new QuantizedLinear(5, 4, { bits: 2 });
      const latent = layer.weight.detach().clone();
      const standardized = (w: Tensor): Tensor => w.sub(w.mean()).div(w.std().add(1e-5));
      // What rounding moves each element by; the gradient goes past it.
      const quantized = layer.effectiveWeight().detach().sub(latent.mean()).div(latent.std());
      const moved = quantized.sub(standardized(latent));
      const formula = (w: Tensor): Tensor => standardized(w).add(moved).mul(w.std()).add(w.mean());
      const free = latent.clone().requiresGrad_();
      gradcheck(formula, [free]);
      const cotangent = randn([4, 5]);
      const [expected] = grad([formula(free).mul(cotangent).sum()], [free]);
      const [found] = grad([layer.effectiveWeight().mul(cotangent).sum()], [layer.weight]);
      expect(far(formula(free).detach(), layer.effectiveWeight().detach())).toBeLessThan(1e-12);
      expect(far(found as Tensor, expected as Tensor)).toBeLessThan(1e-12);
    });
  });
});

describe('compact files', () => {
  const kinds = [
    { method: 'adaptformer', options: { hidden: 4, scale: 0.5, bits: 1 }, head: 32 },
    { method: 'adaptformer', options: { hidden: 3, scale: 10, bits: 4 }, head: 1 },
    { method: 'lora', options: { rank: 2, alpha: 1, bits: 2, dropoutAt: 'rank' }, head: 32 },
    { method: 'lora', options: { rank: 1, bits: 8 }, head: 1 },
  ] as const;

  test.each(kinds)('$method $options, head of $head bits: written, read, and the same outputs', (kind) => {
    const { method, options, head } = kind;
    const model = vit();
    const settings = head === 1 ? { classes: 8, bits: head } : { classes: 8 };
    const adapter = graft(model, method, options, { head: settings, seed: 4 });
    // Away from the small start, so that a wrong file would show.
    noGrad(() => {
      for (const p of adapter.parameters()) p.copy_(randn(p.shape));
    });
    const expected = output(model);
    const path = join(folder, `${method}${options.bits}.bin`);
    saveCompact(adapter, path, { dataset: 'shapes' });

    const side = readCompactSettings(path.replace('.bin', '.yaml'));
    expect(side).toMatchObject({ backbone: 'vit', dataset: 'shapes', bit: options.bits, num_class: 8 });
    expect(side.method).toBe(`${method}${head === 1 ? '-bihead' : ''}`);
    const layers = compactLayout(side, { width: 24, depth: 3 });
    const quantized = layers.filter(({ bits }) => bits !== 32);
    const floats = layers.filter(({ bits }) => bits === 32);
    const elements = (shape: readonly number[]): number => shape.reduce((a, b) => a * b);
    const size =
      quantized.reduce((sum, { shape, bits }) => sum + (elements(shape) * bits) / 8 + 8, 0) +
      floats.reduce((sum, { shape }) => sum + 4 * elements(shape), 0);
    expect(statSync(path).size).toBe(size);

    const other = vit();
    loadCompact(other, path);
    expect(far(output(other), expected)).toBeLessThan(1e-5);
    expect(far(output(vit()).narrow(1, 0, 5), expected.narrow(1, 0, 5))).toBeGreaterThan(1e-2);
  });

  test('codes are packed with the first element in the lowest bits', () => {
    const layout = [{ name: 'w', shape: [2, 4], bits: 1 }] as const;
    const w = tensor([1, -1, -1, -1, 1, 1, -1, -1]).reshape([2, 4]);
    const bytes = encodeCompact(new Map([['w', w]]), layout);
    expect(bytes).toHaveLength(9);
    expect(bytes[0]).toBe(0b00110001);
    const numbers = new DataView(bytes.buffer);
    expect(numbers.getFloat32(1, true)).toBeCloseTo(-0.25);
    expect(numbers.getFloat32(5, true)).toBeCloseTo(Math.sqrt(7.5 / 7));
    const back = decodeCompact(bytes, layout).get('w')?.data() as Float32Array;
    expect(back[0]).toBeCloseTo(0.67448974 * Math.sqrt(7.5 / 7) - 0.25);
  });

  test('what does not fit is refused, saying what would', () => {
    const odd = [{ name: 'w', shape: [3, 3], bits: 2 }] as const;
    expect(() => encodeCompact(new Map(), odd)).toThrow(/9 elements, and at 2 bits .* multiple of 4/);
    expect(() => decodeCompact(new Uint8Array(5), [{ name: 'w', shape: [2, 4], bits: 1 }])).toThrow(
      /has 5 bytes, its settings ask for 9/,
    );
    const model = vit();
    expect(() => saveCompact(graft(model, 'lora', { rank: 1 }), join(folder, 'no.bin'))).toThrow(/option bits/);
    expect(() => graft(vit(), 'adaptformer', { bias: true, bits: 1 })).toThrow(/quantized layers have no biases/);
    const resnet = createCustomModel('resnet', { block: 'basic', layers: [1], channels: [8], numClasses: 2 });
    expect(() => graft(resnet, 'lora', { rank: 1, bits: 1 })).toThrow(/only linear layers take quantized factors/);
    const side = join(folder, 'bad.yaml');
    writeFileSync(side, 'backbone: vit\nbit: 3\n');
    expect(() => readCompactSettings(side)).toThrow(/bad\.yaml: bit/);
    expect(readFileSync(side, 'utf8')).toContain('bit: 3');
  });

  test('a quantized head merges into an ordinary one', () => {
    const model = vit();
    const adapter = graft(model, 'lora', { rank: 2, bits: 4 }, { head: { classes: 3, bits: 1 } });
    const expected = output(model);
    adapter.merge();
    expect(far(output(model), expected)).toBeLessThan(1e-5);
    adapter.unmerge();
    expect(output(model).equal(expected)).toBe(true);
  });
});
