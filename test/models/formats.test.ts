/** Published formats both ways, and models made from files. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { writeSafetensors } from '../../lib/checkpoint/index.js';
import {
  createCustomModel,
  createModel,
  exportState,
  importState,
  loadModel,
  loadState,
  RevCol,
} from '../../lib/models/index.js';
import { ones, randn, type Tensor, withDefaults } from '../../lib/tensor/index.js';
import { randomize } from './tiny.js';

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-formats-'));
afterAll(() => rmSync(folder, { recursive: true }));

const same = (a: ReadonlyMap<string, Tensor>, b: ReadonlyMap<string, Tensor>): boolean =>
  a.size === b.size && [...a].every(([name, tensor]) => b.get(name)?.equal(tensor) ?? false);

describe("timm's names", () => {
  test.each(['convnext_atto', 'convnext_femto', 'convnext_pico', 'convnext_nano', 'convnext_tiny_hnf'])(
    'the MLPs of %s are 1x1 convolutions there',
    (name) => {
      const model = withDefaults({ device: 'meta' }, () => createModel(name));
      const [own, theirs] = [model.stateDict(), exportState(model, 'timm')];
      expect([...theirs.keys()]).toEqual([...own.keys()]);
      for (const leaf of ['fc1', 'fc2']) {
        const path = `stages.1.blocks.0.mlp.${leaf}.weight`;
        expect(theirs.get(path)?.shape).toEqual([...(own.get(path)?.shape ?? []), 1, 1]);
      }
      const tiny = withDefaults({ device: 'meta' }, () => createModel('convnext_tiny'));
      expect(exportState(tiny, 'timm').get('stages.1.blocks.0.mlp.fc1.weight')?.ndim).toBe(2);
    },
  );

  test("CLIP's residual network, both ways", () => {
    const options = { layers: [1, 2], width: 8, heads: 2, outputDim: 6, imgSize: 32 };
    const model = randomize(createCustomModel('clip_resnet', options));
    const theirs = exportState(model, 'timm');
    for (const name of [
      'stem.conv2.bn.running_var',
      'stages.0.0.conv1_1x1.conv.weight',
      'stages.1.1.conv2_kxk.bn.bias',
      'stages.1.0.shortcut.conv.conv.weight',
      'head.pos_embed',
      'head.q.bias',
      'head.proj.weight',
    ])
      expect([...theirs.keys()]).toContain(name);
    expect(same(model.stateDict(), importState(model, theirs))).toBe(true);
    const classified = createCustomModel('clip_resnet', { ...options, numClasses: 3 });
    expect(() => exportState(classified, 'timm')).toThrow(/has no name for head\.weight/);
  });

  test("the projection of CLIP's transformer is a classifier with a bias of zeros; another bias is refused", () => {
    const options = { imgSize: 16, patchSize: 8, embedDim: 8, depth: 1, numHeads: 2, projDim: 6 };
    const model = randomize(createCustomModel('clip_vit', options));
    const theirs = exportState(model, 'timm');
    expect(theirs.get('head.bias')?.any().item()).toBe(false);
    expect(same(model.stateDict(), importState(model, theirs))).toBe(true);
    theirs.set('head.bias', ones([6]));
    expect(() => loadState(model, theirs)).toThrow(/unexpected \(1\): head\.bias/);
    const classified = createCustomModel('clip_vit', { ...options, numClasses: 3 });
    expect(() => exportState(classified, 'timm')).toThrow(/no name for a classifier behind CLIP's projection/);
  });
});

test('a RevCol with one classifier takes the files of supervised training', () => {
  const sizes = { channels: [4, 4, 4, 6], layers: [1, 1, 1, 1], columns: 4, numClasses: 5 };
  const supervised = randomize(createCustomModel('revcol', { ...sizes, supervised: true })).eval();
  const model = createCustomModel('revcol', sizes).eval();
  loadState(model, supervised.stateDict());
  const x = randn([2, 3, 32, 32]);
  expect(model.run(x).equal(supervised.run(x))).toBe(true);
  if (!(supervised instanceof RevCol)) throw new Error('the family revcol makes no RevCol');
  expect(model.run(x).equal(supervised.supervised(x).logits.at(-1) as Tensor)).toBe(true);
  expect(() => loadState(supervised, model.stateDict())).toThrow(/missing \(\d+\): .*cls_blocks/);
});

describe('loadModel', () => {
  const source = randomize(createModel('ghostnet_050', { numClasses: 7 })).eval();
  const file = join(folder, 'ghostnet.safetensors');
  writeSafetensors(file, source.stateDict());
  const x = randn([1, 3, 33, 47]);

  test('has as many classes as the file', () => {
    const model = loadModel('ghostnet_050', file).eval();
    expect(model.options).toEqual({ numClasses: 7 });
    expect(model.run(x).equal(source.run(x))).toBe(true);
  });

  test('has a fresh classifier of another size on request, or none', () => {
    const model = loadModel('ghostnet_050', file, { numClasses: 4 }).eval();
    expect(model.run(x).shape).toEqual([1, 4]);
    expect(model.forwardFeatures(x).equal(source.forwardFeatures(x))).toBe(true);
    expect(loadModel('ghostnet_050', file, { numClasses: 0 }).eval().run(x).shape).toEqual([1, 1280]);
  });

  test('a file without a classifier gives a model without one, or a fresh one on request', () => {
    const headless = join(folder, 'headless.safetensors');
    writeSafetensors(
      headless,
      [...source.stateDict()].filter(([name]) => !source.isInClassifier(name)),
    );
    expect(loadModel('ghostnet_050', headless).eval().run(x).shape).toEqual([1, 1280]);
    expect(loadModel('ghostnet_050', headless, { numClasses: 3 }).eval().run(x).shape).toEqual([1, 3]);
  });

  test('refuses what does not fit: names, options, files', () => {
    expect(() => loadModel('ghostnet_051', file)).toThrow(
      /there is no model 'ghostnet_051'; did you mean ghostnet_050/,
    );
    expect(() => loadModel('ghostnet_050', file, { widht: 2 })).toThrow(/unknown option 'widht'; did you mean width/);
    expect(() => loadModel('ghostnet_100', file)).toThrow(/does not fit ghostnet_100[\s\S]*conv_stem\.weight/);
    expect(() => loadModel('resnet18', file)).toThrow(/seems to belong to another model/);
  });
});
