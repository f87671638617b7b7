/** Merged models in one file. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { graft, loadMerged, saveMerged } from '../../lib/adapters/index.js';
import { CheckpointError, writeSafetensors } from '../../lib/checkpoint/index.js';
import { createModel, loadWeights } from '../../lib/models/index.js';
import { manualSeed, noGrad, randn } from '../../lib/tensor/index.js';

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-merged-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const info = { classNames: ['a', 'b', 'c'], transforms: [{ kind: 'toFloat' }] };

test.each([
  ['lora', 'cifar_resnet20', {}],
  // Gives convolutions a bias that the published network lacks.
  ['ssf', 'cifar_resnet20', {}],
  ['fact', 'vit_tiny_patch16_224', { imgSize: 48 }],
])('%s on %s, merged and read back, computes the same', (method, name, options) => {
  manualSeed(0);
  const model = createModel(name, options);
  const adapter = graft(model, method, {}, { head: { classes: 3 } });
  noGrad(() => adapter.parameters().forEach((parameter) => parameter.add_(randn(parameter.shape).mul(0.05))));
  const [, height, width] = model.config.inputSize;
  const image = randn([2, 3, height, width]);
  const before = noGrad(() => model.eval().run(image));
  adapter.merge();
  const merged = noGrad(() => model.run(image));
  const path = join(folder, `${method}.safetensors`);
  saveMerged(path, model, info);
  const read = loadMerged(path);
  expect(read).toMatchObject(info);
  expect(read.model.training).toBe(false);
  const again = noGrad(() => read.model.run(image));
  expect(again.equal(merged)).toBe(true);
  expect(Number(again.sub(before).abs().max().div(before.abs().max()).item())).toBeLessThan(1e-4);
});

test('other names are read back, and Python files hold the same', () => {
  manualSeed(0);
  const model = createModel('cifar_resnet20');
  graft(model, 'lora', {}, { head: { classes: 3 } }).merge();
  const path = join(folder, 'official.safetensors');
  saveMerged(path, model, info, { names: 'official' });
  const image = randn([1, 3, 32, 32]);
  const expected = noGrad(() => model.eval().run(image));
  expect(noGrad(() => loadMerged(path).model.run(image)).equal(expected)).toBe(true);
  const torch = join(folder, 'merged.pt');
  saveMerged(torch, model, info, { format: 'torch' });
  const other = createModel('cifar_resnet20', { numClasses: 3 });
  loadWeights(other, torch);
  expect(noGrad(() => other.eval().run(image)).equal(expected)).toBe(true);
});

test('a file of weights alone is refused with what reads it', () => {
  const path = join(folder, 'weights.safetensors');
  writeSafetensors(path, createModel('cifar_resnet20').stateDict());
  expect(() => loadMerged(path)).toThrow(CheckpointError);
  expect(() => loadMerged(path)).toThrow(/no merged model[^]*torchgraft merge[^]*loadWeights/);
});
