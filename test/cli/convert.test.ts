/** `torchgraft convert` and the formats of `torchgraft merge`, as processes. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { graft, loadPeft, savePeft } from '../../lib/adapters/index.js';
import {
  readCheckpoint,
  readTorchFile,
  stateDictOf,
  writeSafetensors,
  writeTorchFile,
} from '../../lib/checkpoint/index.js';
import { createModel, exportState, importState, type Host, loadWeights } from '../../lib/models/index.js';
import { init } from '../../lib/nn/index.js';
import { arange, full, manualSeed, noGrad, type Tensor } from '../../lib/tensor/index.js';
import { temporaryFolder } from '../checkpoint/helpers.js';
import { json, succeed, torchgraft } from './process.js';

const folder = temporaryFolder();
const at = (name: string): string => join(folder, name);
const state = (path: string): Map<string, Tensor> => stateDictOf(readCheckpoint(path));

function same(a: ReadonlyMap<string, Tensor>, b: ReadonlyMap<string, Tensor>): void {
  expect([...a.keys()].sort()).toEqual([...b.keys()].sort());
  for (const [name, tensor] of a) expect(b.get(name)?.equal(tensor), name).toBe(true);
}

describe('containers', () => {
  const weights = (): Map<string, Tensor> =>
    new Map([
      ['w', arange(600, { dtype: 'float32' })],
      ['b', full([2], 3, { dtype: 'bfloat16' })],
      ['flag', full([2], 1, { dtype: 'bool' })],
    ]);

  test('PyTorch to safetensors, shards, PyTorch again', async () => {
    writeTorchFile(at('in.pt'), { state_dict: weights(), epoch: 3 });
    const first = await json<{ tensors: number; leftOut: string[] }>(
      'convert',
      at('in.pt'),
      '--out',
      at('a.safetensors'),
    );
    expect(first).toMatchObject({ format: 'safetensors', tensors: 3, bytes: 2406, leftOut: ['epoch'] });
    await succeed('convert', at('a.safetensors'), '--out', at('s.safetensors'), '--max-shard-size', '1KB');
    expect(existsSync(at('s.safetensors.index.json'))).toBe(true);
    await succeed('convert', at('s.safetensors.index.json'), '--out', at('back.pt'));
    expect(readTorchFile(at('back.pt'))).toBeInstanceOf(Map);
    same(state(at('back.pt')), weights());
  });

  test.each([
    [['nothing.pt', '--out', 'x.pt'], /there is no file or folder/],
    [['in.safetensors', '--out', 'x.pt', '--names', 'timm'], /--names timm needs --model/],
    [['in.safetensors', '--out', 'x.pt', '--max-shard-size', '5GB'], /--max-shard-size is for safetensors only/],
    [['in.safetensors', '--out', 'x', '--max-shard-size', '5'], /expected a size such as 500MB/],
    [['in.safetensors', '--out', 'x', '--format', 'peft'], /--format peft is for adapter folders/],
    [['in.safetensors', '--out', 'x', '--model', 'resnet18'], /does not hold the weights of resnet18/],
  ] as const)('%j is wrong usage', async (args, message) => {
    writeSafetensors(at('in.safetensors'), weights());
    const named = args.map((arg, i) => (i === 0 || i === 2 ? at(arg) : arg));
    const { code, stderr } = await torchgraft(['convert', ...named]);
    expect(code).toBe(2);
    expect(stderr).toMatch(message);
  });
});

/** Weights at which layers have their effect. */
function randomized(model: Host): Host {
  manualSeed(8);
  noGrad(() => {
    for (const [name, tensor] of model.namedState()) if (!name.endsWith('tracked')) init.uniform_(tensor, 0.5, 1.5);
  });
  return model.eval();
}

const vit = (): Host => randomized(createModel('vit_tiny_patch16_224', { imgSize: 32, numClasses: 3 }));

describe('names', () => {
  test("to transformers' names and back, to Google's archive and back", { timeout: 180_000 }, async () => {
    const model = vit();
    writeSafetensors(at('vit.safetensors'), model.stateDict());
    const named = ['--model', 'vit_tiny_patch16_224', '--set', 'imgSize=32'];
    await succeed('convert', at('vit.safetensors'), ...named, '--names', 'transformers', '--out', at('hf.bin'));
    expect([...state(at('hf.bin')).keys()]).toContain('vit.encoder.layer.0.attention.attention.query.weight');
    await succeed('convert', at('vit.safetensors'), ...named, '--names', 'official', '--out', at('vit.npz'));
    expect([...state(at('vit.npz')).keys()]).toContain('Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel');
    for (const file of ['hf.bin', 'vit.npz']) {
      await succeed('convert', at(file), ...named, '--out', at('back.safetensors'));
      same(state(at('back.safetensors')), model.stateDict());
    }
  });
});

describe('adapters', () => {
  test('to peft and back; merged under other names', { timeout: 180_000 }, async () => {
    const model = vit();
    writeSafetensors(at('backbone.safetensors'), model.stateDict());
    const adapter = graft(model, 'lora', { rank: 2 }, { head: { classes: 2 }, seed: 1 });
    noGrad(() => adapter.parameters().forEach((parameter) => init.normal_(parameter, 0, 0.1)));
    const resize = { kind: 'resize', size: [32, 32] };
    adapter.save(at('adapter'), { classNames: ['cat', 'dog'], preprocessing: [resize] });
    const weights = ['--weights', at('backbone.safetensors')];

    await succeed('convert', at('adapter'), ...weights, '--format', 'peft', '--out', at('peft'));
    expect(JSON.parse(readFileSync(join(at('peft'), 'adapter_config.json'), 'utf8'))).toMatchObject({
      peft_type: 'LORA',
      r: 4,
      modules_to_save: ['head'],
    });
    await succeed('convert', at('peft'), ...weights, '--out', at('again'));
    savePeft(adapter, at('direct'));
    same(state(join(at('peft'), 'adapter_model.safetensors')), state(join(at('direct'), 'adapter_model.safetensors')));
    const { code, stderr } = await torchgraft(['convert', at('peft'), '--out', at('x'), '--format', 'peft']);
    expect([code, stderr]).toEqual([2, expect.stringMatching(/becomes --format adapter, not peft/)]);

    const merged = vit();
    loadWeights(merged, at('backbone.safetensors'));
    loadPeft(merged, at('peft')).merge();
    for (const [folder_, file] of [
      ['adapter', 'm.pt'],
      ['again', 'n.safetensors'],
    ] as const) {
      const format = file.endsWith('.pt') ? 'torch' : 'safetensors';
      const options = ['--format', format, '--names', 'transformers', '--out', at(file)];
      await succeed('merge', at(folder_), ...weights, ...options);
      const found = state(at(file));
      const expected = exportState(merged, 'transformers');
      expect([...found.keys()].sort()).toEqual([...expected.keys()].sort());
      for (const [name, tensor] of importState(vit(), found))
        expect(
          Number(
            tensor
              .sub(merged.stateDict().get(name) as Tensor)
              .abs()
              .max()
              .item(),
          ),
          name,
        ).toBeLessThan(1e-6);
    }
  });
});
