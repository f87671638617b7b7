/** Merged models in one file. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { graft, loadMerged, readAdapterFolder, readMerged, saveMerged, startFrom } from '../../lib/adapters/index.js';
import { CheckpointError, writeSafetensors } from '../../lib/checkpoint/index.js';
import { createSegmentationModel, type EncoderDecoder } from '../../lib/heads/index.js';
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

const dense = (): EncoderDecoder => {
  manualSeed(1);
  const backbone = createModel('cifar_resnet20', { channels: [4, 6, 8] });
  return createSegmentationModel('fcn', backbone, { classes: 3, channels: 4 }) as EncoderDecoder;
};

test('a model of another task is filled into one that the caller builds', () => {
  const model = dense();
  const adapter = graft(model, 'ssf', {}, { head: 'train' });
  noGrad(() => adapter.parameters().forEach((parameter) => parameter.add_(randn(parameter.shape).mul(0.05))));
  adapter.merge();
  const image = randn([1, 3, 32, 32]);
  const expected = noGrad(() => model.eval().run(image));
  const path = join(folder, 'dense.safetensors');
  saveMerged(path, model, { ...info, task: { kind: 'segment' } });
  const file = readMerged(path);
  expect(file).toMatchObject({ ...info, task: { kind: 'segment' }, model: 'encoder_decoder' });
  // SSF gives convolutions a bias that a fresh model lacks.
  const again = file.fill(dense());
  expect(again.training).toBe(false);
  expect(noGrad(() => again.run(image)).equal(expected)).toBe(true);
  expect(() => loadMerged(path)).toThrow(/encoder_decoder does not classify: .*"segment".*readMerged\(path\)\.fill/);
  expect(() => saveMerged(path, model, { ...info, task: {} }, { names: 'timm' })).toThrow(/no names but its own/);
});

test('an adapter starts from what another one has learned', () => {
  const first = graft(dense(), 'linear_probe', {}, { head: 'train' });
  noGrad(() => first.parameters().forEach((parameter) => parameter.add_(randn(parameter.shape))));
  const path = join(folder, 'head');
  first.save(path, info);
  const model = dense();
  const second = graft(model, 'lora', { rank: 1 }, { head: 'train', seed: 2 });
  const grafts = second.namedOwnParameters().map(([, parameter]) => parameter.detach().clone());
  startFrom(second, readAdapterFolder(path));
  const learned = new Map(first.namedParameters());
  const taken = second.namedParameters().filter(([name]) => learned.has(name));
  expect(taken).toHaveLength(learned.size);
  for (const [name, parameter] of taken) expect(parameter.equal(learned.get(name)!), name).toBe(true);
  second.namedOwnParameters().forEach(([name, p], i) => expect(p.equal(grafts[i]!), name).toBe(true));
  // The other way round there is no place for the grafts, and nothing changes.
  second.save(join(folder, 'grafts'), info);
  const before = first.parameters().map((parameter) => parameter.detach().clone());
  expect(() => startFrom(first, readAdapterFolder(join(folder, 'grafts')))).toThrow(
    /'default' \(linear_probe\) cannot start from .* has learned more or something else/,
  );
  first.parameters().forEach((parameter, i) => expect(parameter.equal(before[i]!)).toBe(true));
});
