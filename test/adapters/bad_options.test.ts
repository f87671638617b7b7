/** What cannot be set in is refused before anything is allocated, and the message says what would fit. */
import { describe, expect, test } from 'vitest';
import { z } from 'zod';
import { defineMethod, graft, graftMethod, parallel } from '../../lib/adapters/index.js';
import { createCustomModel, createCustomTextModel, type Host } from '../../lib/models/index.js';
import { Linear } from '../../lib/nn/index.js';
import { type Device, getRngState } from '../../lib/tensor/index.js';

const hosts = {
  vit: () =>
    createCustomModel('vit', { imgSize: 32, patchSize: 8, embedDim: 48, depth: 4, numHeads: 4, numClasses: 5 }),
  swin: () =>
    createCustomModel('swin', {
      ...{ imgSize: 32, patchSize: 4, embedDim: 12, depths: [1, 1], numHeads: [2, 3] },
      ...{ windowSize: 4, numClasses: 5 },
    }),
  resnet: () => createCustomModel('resnet', { block: 'bottleneck', layers: [1, 1], channels: [16, 32], numClasses: 5 }),
  t5: () =>
    createCustomTextModel('t5', { vocabulary: 30, dim: 24, headDim: 6, hidden: 40, depth: 2, numHeads: 4 }) as Host,
};

interface Row {
  readonly host: keyof typeof hosts;
  readonly method: string;
  readonly options: Record<string, unknown>;
  readonly message: RegExp;
}

const rows: readonly Row[] = [
  { host: 'vit', method: 'lora', options: { rank: 49 }, message: /at most 48/ },
  { host: 'vit', method: 'lora', options: { rank: 0 }, message: /option 'rank'/ },
  { host: 'vit', method: 'lora', options: { at: { path: 'blocks.9.**' } }, message: /no site of vit is that/ },
  // Only the layers of the second stage are wider than the first: what is wrong is found at the last sites.
  { host: 'swin', method: 'krona', options: { a: [3, 4], b: [4, 3] }, message: /rows must multiply to 24/ },
  { host: 'swin', method: 'kadaptation', options: { phmDim: 5 }, message: /1, 2, 3, 4, 6, 12 would do/ },
  { host: 'vit', method: 'kadaptation', options: { phmDim: 16, rank: 64 }, message: /at most 3 is of use/ },
  { host: 'vit', method: 'kadaptation', options: { phmDim: 16, rank: 1e9 }, message: /at most 3 is of use/ },
  { host: 'resnet', method: 'kadaptation', options: {}, message: /no site of resnet is that/ },
  { host: 'vit', method: 'compacter', options: { hidden: 6 }, message: /1, 2, 3, 6 would do/ },
  { host: 'vit', method: 'compacter', options: { rank: 1e9 }, message: /at most 12 is of use/ },
  { host: 'vit', method: 'pevit_lora', options: { rank: 49 }, message: /at most 48/ },
  { host: 'vit', method: 'krona', options: { a: [7, 7], b: [7, 7] }, message: /rows must multiply to 48/ },
  { host: 't5', method: 'krona_b', options: { a: [5, 5], b: [5, 5] }, message: /rows must multiply to 24/ },
  { host: 'resnet', method: 'krona_b_res', options: {}, message: /no site of resnet is that/ },
  { host: 'vit', method: 'adapter', options: { attention: null, mlp: null }, message: /'linear_probe'/ },
  { host: 'vit', method: 'adapter', options: { width: 0 }, message: /option 'width'/ },
  { host: 'resnet', method: 'adapter', options: { design: 'multi_head_parallel' }, message: /no site of resnet/ },
  { host: 'vit', method: 'prefix', options: { nonlinearity: 'relu' }, message: /'gated' or 'add'/ },
  { host: 'resnet', method: 'mam', options: {}, message: /no site of resnet is that/ },
  { host: 'resnet', method: 'prompt_tuning', options: {}, message: /no site of resnet is that/ },
  { host: 'vit', method: 'pro_tuning', options: { groups: 5 }, message: /groups that divide 48/ },
  { host: 'vit', method: 'pro_tuning', options: { kernel: 4 }, message: /odd one such as 5/ },
  { host: 'vit', method: 'pro_tuning', options: { seRatio: 49 }, message: /at most 48/ },
  { host: 'vit', method: 'pro_tuning', options: { positions: ['stage9'] }, message: /there are stem, stage1/ },
  { host: 'vit', method: 'pro_tuning', options: { stages: 3 }, message: /a divisor of 4/ },
  { host: 't5', method: 'pro_tuning', options: {}, message: /reads none; lora, krona/ },
  { host: 't5', method: 'convpass', options: {}, message: /reads none; lora, krona/ },
  { host: 't5', method: 'spm', options: {}, message: /reads none; lora, krona/ },
  { host: 'vit', method: 'adaptformer', options: { bits: 3 }, message: /option 'bits'/ },
  { host: 'resnet', method: 'adaptformer', options: {}, message: /no site of resnet is that/ },
  { host: 'swin', method: 'noah', options: {}, message: /such as vit/ },
  { host: 'vit', method: 'noah', options: { lora: 49 }, message: /at most 48/ },
  { host: 'vit', method: 'noah', options: { prompts: [1, 2] }, message: /4 blocks; give one for each/ },
  { host: 'vit', method: 'intrinsic_subspace', options: { dimension: 1e9 }, message: /a dimension of 1 to/ },
  { host: 'vit', method: 'bitfit', options: { rank: 1 }, message: /unknown option 'rank'; it takes none/ },
];

describe('options that do not fit', () => {
  test.each(rows)('$method on $host: $options', ({ host, method, options, message }) => {
    const model = hosts[host]();
    const head = model.classifier === null ? 'frozen' : 'train';
    expect(() => graft(model, method, options, { head })).toThrow(message);
    expect(model.parameters().every((parameter) => parameter.requiresGrad)).toBe(true);
  });

  test('are found without memory, even at the last site, and without a change of the random numbers', () => {
    const devices: Device[] = [];
    const method = defineMethod({
      id: 'last_site_refuses',
      summary: 'a layer beside every MLP but the last',
      paper: 'none',
      options: z.strictObject({}),
      rules: () => [
        {
          id: 'layer',
          at: { role: 'mlp' },
          compose: parallel(),
          form: (site, { sites }) => {
            const layer = new Linear(site.in, site.out);
            devices.push(layer.weight.device);
            if (site === sites.at(-1)) throw new RangeError('not here');
            return layer;
          },
        },
      ],
    });
    const model = hosts.vit();
    const state = [...(getRngState().data() as Uint8Array)];
    expect(() => graftMethod(model, method, {})).toThrow(/last_site_refuses at blocks\.3\.mlp: not here/);
    expect(devices).toEqual(['meta', 'meta', 'meta', 'meta']);
    expect([...(getRngState().data() as Uint8Array)]).toEqual(state);
  });
});
