import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { applyKeyMap, invertKeyMap, readSafetensors } from '../../lib/checkpoint/index.js';
import { createCustomModel, loadState, microsoftSwinNames, PREFIX_ACROSS_BATCH } from '../../lib/models/index.js';
import { WindowAttention } from '../../lib/models/swin_blocks.js';
import { relativePositionIndex, windowOf, Windows } from '../../lib/models/swin_windows.js';
import { Context, functional } from '../../lib/nn/index.js';
import { aten, manualSeed, noGrad, randn, scope, type Tensor, zeros } from '../../lib/tensor/index.js';
import { randomize } from './tiny.js';

const options = { imgSize: 32, embedDim: 12, depths: [2, 2], numHeads: [2, 3], windowSize: 4, numClasses: 5 };
const swin = (more = {}) => randomize(createCustomModel('swin', { ...options, ...more })).eval();
const golden = readSafetensors(
  fileURLToPath(new URL('../golden/cases/ssf/swin/weights.safetensors', import.meta.url)),
).tensors;

describe('windows', () => {
  test('shrink to small maps, by timm axis by axis, by Microsoft both alike', () => {
    expect(windowOf([8, 12], [4, 4], true, 'timm')).toEqual({ window: [4, 4], shift: [2, 2] });
    expect(windowOf([4, 6], [4, 4], true, 'timm')).toEqual({ window: [4, 4], shift: [0, 2] });
    expect(windowOf([3, 6], [4, 4], true, 'timm')).toEqual({ window: [3, 4], shift: [0, 2] });
    expect(windowOf([3, 6], [4, 4], true, 'microsoft')).toEqual({ window: [3, 3], shift: [0, 0] });
    expect(windowOf([3, 6], [4, 4], true, 'always')).toEqual({ window: [4, 4], shift: [2, 2] });
    expect(windowOf([14, 14], [7, 7], true, 'timm').shift).toEqual([3, 3]);
    expect(windowOf([8, 8], [4, 9], true, 'timm')).toEqual({ window: [4, 8], shift: [2, 0] });
    expect(windowOf([14, 14], [7, 7], false, 'microsoft').shift).toEqual([0, 0]);
  });

  test('have the index and the mask of the official code', () => {
    const index = golden.get('layers.0.blocks.0.attn.relative_position_index') as Tensor;
    expect(relativePositionIndex([4, 4]).equal(index)).toBe(true);
    const mask = golden.get('layers.0.blocks.1.attn_mask') as Tensor;
    expect(new Windows([4, 4], [2, 2]).mask([8, 16], 'cpu', 'float32')?.equal(mask)).toBe(true);
  });

  test('put together what they have cut, rolled and padded', () => {
    const windows = new Windows([4, 3], [2, 1]);
    const map = randn([2, 7, 8, 5]);
    const cut = windows.split(map);
    expect(cut.shape).toEqual([2 * 2 * 3, 12, 5]);
    expect(windows.join(cut, [7, 8]).equal(map)).toBe(true);
  });

  test('make a mask once for each size, and keep it beyond the scope that asked first', () => {
    const windows = new Windows([2, 2], [1, 1]);
    const mask = (side: number): Tensor | null => scope(() => windows.mask([side, side], 'cpu', 'float32'));
    const first = mask(4);
    expect(first?.sum().item()).toBeLessThan(0);
    expect(mask(4)).toBe(first);
    // An odd map is padded to the same windows.
    expect(mask(3)).toBe(first);
    for (let side = 6; side < 40; side += 2) mask(side);
    expect(mask(4)).not.toBe(first);
    expect(new Windows([2, 2], [0, 0]).mask([4, 4], 'cpu', 'float32')).toBeNull();
  });
});

describe('tokens in front of the patches', () => {
  /** Prompts through all stages, as visual prompt tuning sets them in. */
  const run = (images: Tensor, prompts: Tensor, acrossBatch = false): Tensor => {
    const model = prompted;
    const ctx = new Context();
    if (acrossBatch) ctx.state.set(PREFIX_ACROSS_BATCH, true);
    const [batch = 0] = images.shape;
    return noGrad(() => {
      let z = model.getModule('patch_embed').run(images, ctx);
      z = aten.cat([prompts.expand([batch, -1, -1]), z], 1);
      ctx.prefixTokens = prompts.shape[1] ?? 0;
      z = model.getModule('layers').run(z, ctx);
      expect([ctx.grid, ctx.prefixTokens]).toEqual([[4, 4], 3]);
      return z;
    });
  };
  manualSeed(3);
  const prompted = swin();
  const images = randn([2, 3, 32, 32]);
  const prompts = randn([1, 3, 12]);

  test('belong to their own image', () => {
    const together = run(images, prompts);
    expect(together.shape).toEqual([2, 3 + 16, 24]);
    const apart = aten.cat([run(images.narrow(0, 0, 1), prompts), run(images.narrow(0, 1, 1), prompts)], 0);
    expect(together.sub(apart).abs().max().item()).toBeLessThan(1e-5);
  });

  test('mix the images of a batch on request only, as the official prompts do', () => {
    expect(run(images, prompts, true).sub(run(images, prompts)).abs().max().item()).toBeGreaterThan(1e-3);
    const [one] = [images.narrow(0, 0, 1)];
    expect(run(one, prompts, true).equal(run(one, prompts))).toBe(true);
  });

  test('change what the patches become, unlike tokens that nobody attends to', () => {
    const patches = run(images, prompts).narrow(1, 3, 16);
    const others = run(images, prompts.neg()).narrow(1, 3, 16);
    expect(patches.sub(others).abs().max().item()).toBeGreaterThan(1e-3);
  });

  test('are refused behind the patches', () => {
    const ctx = new Context();
    ctx.grid = [8, 8];
    expect(() => prompted.getModule('layers.0').run(zeros([1, 65, 12]), ctx)).toThrow(/in front of the patches only/);
  });
});

test('keys that are set in front are seen from every window, without a bias', () => {
  const attention = swin().getModule('layers.0.blocks.1.attn');
  if (!(attention instanceof WindowAttention)) throw new TypeError('not the attention of a Swin transformer');
  const x = randn([2, 64, 12]);
  const forward = (extra: boolean): Tensor => {
    const ctx = new Context();
    ctx.grid = [8, 8];
    const front = (t: Tensor, value: number): Tensor =>
      aten.cat([zeros([t.shape[0] ?? 0, t.shape[1] ?? 0, 1, t.shape[3] ?? 0]).add(value), t], 2);
    for (const module of [attention.keys, attention.values]) {
      module.grafts = extra
        ? { apply: (_, t) => front(t, module === attention.keys ? 0 : 7), parameters: () => [], modules: () => [] }
        : undefined;
    }
    return noGrad(() => attention.run(x, ctx));
  };
  expect(forward(true).shape).toEqual([2, 64, 12]);
  expect(forward(true).sub(forward(false)).abs().max().item()).toBeGreaterThan(0.1);
  expect(attention.windows.isShifted).toBe(true);
  attention.keys.grafts = attention.values.grafts = undefined;
});

describe('image sizes', () => {
  test('other than the configured one need dynamicImgSize; larger maps are padded to whole windows', () => {
    expect(() => swin().run(zeros([1, 3, 40, 32]))).toThrow(/built for images of 32 x 32/);
    const model = swin({ dynamicImgSize: true });
    const ctx = new Context();
    expect(model.forwardFeatures(randn([1, 3, 44, 100]), ctx).shape).toEqual([1, 6 * 13, 24]);
    expect(ctx.grid).toEqual([6, 13]);
    expect(() => model.run(zeros([1, 3, 42, 32]))).toThrow(/does not divide into patches/);
  });

  test('too small for the stages are refused before anything is built', () => {
    expect(() => createCustomModel('swin', { ...options, imgSize: 4 })).toThrow(/at least 8 x 8/);
    expect(() => createCustomModel('swin', { ...options, numHeads: [2, 5] })).toThrow(/24 of stage 1 .* 5 heads/);
    expect(() => createCustomModel('swin', { ...options, numHeads: [2] })).toThrow(/numHeads has 1/);
    expect(() => createCustomModel('swin', { ...options, windowSize: [4] })).toThrow(/windowSize has 1/);
  });
});

describe('files', () => {
  test('in Microsoft names load, index and mask buffers are dropped, and the way back is the same', () => {
    const source = swin();
    const names = microsoftSwinNames(2);
    const theirs = applyKeyMap(invertKeyMap(names), source.stateDict()).tensors;
    expect([...theirs.keys()]).toContain('layers.0.downsample.reduction.weight');
    expect([...theirs.keys()]).toContain('head.weight');
    theirs.set('layers.0.blocks.1.attn_mask', zeros([4, 16, 16]));
    theirs.set('layers.0.blocks.1.attn.relative_position_index', relativePositionIndex([4, 4]));
    const model = swin();
    loadState(model, theirs);
    const x = randn([1, 3, 32, 32]);
    expect(model.run(x).equal(source.run(x))).toBe(true);
    expect(
      [...applyKeyMap(names, applyKeyMap(invertKeyMap(names), source.stateDict()).tensors).tensors.keys()].sort(),
    ).toEqual([...source.stateDict().keys()].sort());
  });

  test('in the names of three stages move every merging by one', () => {
    const state = new Map([0, 1].map((i) => [`layers.${i}.downsample.norm.weight`, zeros([i + 1])]));
    const ours = applyKeyMap(microsoftSwinNames(3), state).tensors;
    expect(ours.get('layers.1.downsample.norm.weight')?.shape).toEqual([1]);
    expect(ours.get('layers.2.downsample.norm.weight')?.shape).toEqual([2]);
  });

  test('with tables and positions of other sizes are resampled', () => {
    const source = swin({ ape: true });
    const model = swin({ ape: true, imgSize: 48, windowSize: 6 });
    const report = loadState(model, source.stateDict());
    expect(report.resampled).toEqual([
      'absolute_pos_embed',
      ...['0.blocks.0', '0.blocks.1', '1.blocks.0', '1.blocks.1'].map(
        (block) => `layers.${block}.attn.relative_position_bias_table`,
      ),
    ]);
    const name = 'layers.0.blocks.0.attn.relative_position_bias_table';
    const table = source.stateDict().get(name)?.t().reshape([1, 2, 7, 7]) as Tensor;
    const expected = functional.interpolate(table, { size: 11, mode: 'bicubic' }).reshape([2, 121]).t();
    expect(model.stateDict().get(name)?.equal(expected)).toBe(true);
    const wrong = source.stateDict().set(name, zeros([50, 2]));
    expect(() => loadState(swin({ ape: true }), wrong)).toThrow(/bias_table \[49, 2\] given \[50, 2\]/);
  });
});
