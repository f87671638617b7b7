/** LoRA and LoKr adapters between torchgraft and the package peft, beside models of timm and transformers. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, test } from 'vitest';
import { graft, loadPeft, readPeft, savePeft, type Adapter, type GraftOptions } from '../../lib/adapters/index.js';
import { readSafetensors, writeSafetensors } from '../../lib/checkpoint/index.js';
import { loadState } from '../../lib/models/index.js';
import { init } from '../../lib/nn/index.js';
import { noGrad, randn, scope, type Tensor } from '../../lib/tensor/index.js';
import { type BackboneId, backbones, build, difference, filesOf, inputsOf, run } from './backbones.js';
import { findEnvironment, runJobs, temporaryFolder } from './python.js';

const TOLERANCE = 1e-5;
const python = await findEnvironment();
const folder = temporaryFolder();
const jobsScript = fileURLToPath(new URL('peft_jobs', import.meta.url));

// ---- ours to peft -------------------------------------------------------------------------------------------------------

interface Ours {
  readonly id: string;
  readonly backbone: BackboneId;
  readonly method: 'lora' | 'lokr';
  readonly options: Readonly<Record<string, unknown>>;
  readonly head?: NonNullable<GraftOptions['head']>;
}

const qkv = { name: 'qkv' };
const rows: readonly (readonly [Ours['id'], BackboneId, Ours['method'], Ours['options'], NonNullable<Ours['head']>])[] =
  [
    ['LoRA on q and v of timm, a new head', 'vit', 'lora', { rank: 3, alpha: 6 }, { classes: 5 }],
    ['LoRA on layers of several widths', 'vit', 'lora', { rank: 4, at: { role: 'linear', inBlock: true } }, 'train'],
    [
      'LoRA with ranks of their own',
      'vit',
      'lora',
      { rank: 2, at: qkv, also: [{ at: { name: 'fc1' }, rank: 5, alpha: 1 }] },
      'frozen',
    ],
    [
      'LoRA, quantized, a head behind a norm',
      'vit',
      'lora',
      { rank: 4, bits: 4, dropoutAt: 'rank' },
      { classes: 5, norm: 'batch' },
    ],
    ['LoRA on convolutions', 'resnet', 'lora', { rank: 4, alpha: 2 }, { classes: 5 }],
    [
      'LoRA on depth-wise convolutions and linear layers',
      'convnext',
      'lora',
      { rank: 2, at: [{ name: ['conv_dw', 'fc1'] }] },
      'train',
    ],
    ['LoRA on q and v of transformers', 'hfVit', 'lora', { rank: 3, alpha: 6 }, { classes: 5 }],
    ['LoRA on the whole projection, which is three layers there', 'hfVit', 'lora', { rank: 3, at: qkv }, 'frozen'],
    ['LoRA on T5', 't5', 'lora', { rank: 4 }, 'frozen'],
    ['LoKr on whole projections', 'vit', 'lokr', { rank: 2, alpha: 3, at: { name: ['qkv', 'fc1'] } }, { classes: 5 }],
    [
      'LoKr, both factors split',
      'vit',
      'lokr',
      { rank: 2, decomposeBoth: true, decomposeFactor: 8, at: qkv },
      'frozen',
    ],
    ['LoKr on convolutions', 'resnet', 'lokr', { rank: 3, at: { role: 'conv', inBlock: true } }, 'frozen'],
    [
      'LoKr on convolutions, a core of kernels',
      'resnet',
      'lokr',
      { rank: 3, effectiveConv: true, at: { name: 'conv1', inBlock: true } },
      'frozen',
    ],
    ['LoKr on q and v of transformers', 'hfVit', 'lokr', { rank: 2 }, 'frozen'],
  ];
const ours: readonly Ours[] = rows.map(([id, backbone, method, options, head]) => ({
  id,
  backbone,
  method,
  options,
  head,
}));

/** An adapter with random values. */
function makeOurs({ backbone, method, options, head }: Ours): Adapter {
  const model = build(backbone);
  const adapter = graft(model, method, options, { head: head ?? 'frozen', seed: 4 });
  noGrad(() => {
    for (const [, parameter] of adapter.namedParameters()) init.normal_(parameter, 0, 0.1);
    for (const [name, buffer] of adapter.namedBuffers())
      if (name.endsWith('running_var')) init.uniform_(buffer, 0.5, 2);
  });
  model.eval();
  return adapter;
}

// ---- peft to ours -------------------------------------------------------------------------------------------------------

interface Theirs {
  readonly id: string;
  readonly backbone: BackboneId;
  readonly make: Readonly<Record<string, unknown>>;
}

const theirRows: readonly (readonly [string, BackboneId, string, Readonly<Record<string, unknown>>])[] = [
  [
    'LoRA, rank-stabilized, with the head',
    'vit',
    'LoraConfig',
    { r: 4, lora_alpha: 7, use_rslora: true, target_modules: ['qkv', 'fc1'], modules_to_save: ['head'] },
  ],
  [
    'LoRA with patterns',
    'vit',
    'LoraConfig',
    {
      r: 2,
      lora_alpha: 2,
      target_modules: '.*\\.(qkv|proj|fc2)',
      rank_pattern: { 'blocks.0.attn.proj': 6, fc2: 3 },
      alpha_pattern: { '^blocks.1.mlp.fc2': 5 },
    },
  ],
  [
    'LoRA on convolutions',
    'resnet',
    'LoraConfig',
    { r: 4, lora_alpha: 4, target_modules: ['conv2', 'downsample.0'], modules_to_save: ['fc'] },
  ],
  [
    'LoRA on transformers',
    'hfVit',
    'LoraConfig',
    { r: 4, lora_alpha: 4, target_modules: ['q_proj', 'v_proj', 'fc1'], modules_to_save: ['classifier'] },
  ],
  ['LoRA on T5', 't5', 'LoraConfig', { r: 2, lora_alpha: 4, target_modules: ['q', 'v', 'wi'] }],
  [
    'LoKr',
    'vit',
    'LoKrConfig',
    { r: 2, alpha: 4, decompose_both: true, target_modules: ['qkv', 'fc1', 'fc2'], modules_to_save: ['head'] },
  ],
  [
    'LoKr on convolutions',
    'resnet',
    'LoKrConfig',
    { r: 2, alpha: 4, use_effective_conv2d: true, decompose_factor: 4, target_modules: ['conv1', 'conv2'] },
  ],
];
const theirs: readonly Theirs[] = theirRows.map(([id, backbone, type, options]) => ({
  id,
  backbone,
  make: { type, ...options },
}));

const measured = new Map<string, number>();

describe.skipIf(python.command === null)(`adapters of peft${python.reason}`, () => {
  beforeAll(async () => {
    const ids = [...new Set([...ours, ...theirs].map(({ backbone }) => backbone))];
    const files = new Map(ids.map((id) => [id, scope(() => filesOf(id, folder))]));
    const job = (id: BackboneId): object => ({
      source: backbones[id].source,
      options: backbones[id].options,
      ...files.get(id),
    });
    const at = (name: string): string => join(folder, name);
    const outputOf = (name: string): Tensor => readSafetensors(at(name)).tensors.get('logits') as Tensor;

    // Ours, saved for peft, and loaded again here.
    const expected = ours.map((subject, i) => {
      const adapter = makeOurs(subject);
      const logits = run(adapter.model, inputsOf(adapter.model));
      savePeft(adapter, at(`ours_${i}`), { classNames: ['a', 'b'], names: backbones[subject.backbone].names });
      const again = build(subject.backbone);
      loadPeft(again, at(`ours_${i}`));
      again.eval();
      measured.set(`${subject.id}: again`, difference(run(again, inputsOf(again)), logits));
      return logits;
    });
    const loads = ours.map(({ backbone }, i) => ({
      ...job(backbone),
      adapter: at(`ours_${i}`),
      out: at(`ours_${i}.safetensors`),
    }));
    const makes = theirs.map(({ backbone, make }, i) => ({
      ...job(backbone),
      make,
      save: at(`theirs_${i}`),
      out: at(`theirs_${i}.safetensors`),
    }));
    const changes = await runJobs<{ change: number }>(python, jobsScript, folder, [...loads, ...makes]);
    ours.forEach(({ id }, i) => {
      measured.set(`${id}: change`, changes[i]?.change ?? 0);
      measured.set(`${id}: peft`, difference(outputOf(`ours_${i}.safetensors`), expected[i] as Tensor));
    });

    // Theirs, loaded here, saved again and loaded by peft.
    const back = theirs.map(({ id, backbone }, i) => {
      const model = build(backbone);
      const adapter = loadPeft(model, at(`theirs_${i}`));
      model.eval();
      measured.set(`${id}: change`, changes[ours.length + i]?.change ?? 0);
      measured.set(`${id}: here`, difference(run(model, inputsOf(model)), outputOf(`theirs_${i}.safetensors`)));
      savePeft(adapter, at(`back_${i}`), { names: backbones[backbone].names });
      adapter.save(at(`own_${i}`));
      return { ...job(backbone), adapter: at(`back_${i}`), out: at(`back_${i}.safetensors`) };
    });
    await runJobs(python, jobsScript, folder, back);
    theirs.forEach(({ id }, i) =>
      measured.set(`${id}: back`, difference(outputOf(`back_${i}.safetensors`), outputOf(`theirs_${i}.safetensors`))),
    );
  }, 300_000);

  test.each(ours)('ours to peft: $id', ({ id }) => {
    expect(measured.get(`${id}: change`)).toBeGreaterThan(1e-3);
    expect(measured.get(`${id}: peft`)).toBeLessThan(TOLERANCE);
    expect(measured.get(`${id}: again`)).toBeLessThan(TOLERANCE);
  });

  test.each(theirs)('peft to ours and back: $id', ({ id }) => {
    expect(measured.get(`${id}: change`)).toBeGreaterThan(1e-3);
    expect(measured.get(`${id}: here`)).toBeLessThan(TOLERANCE);
    expect(measured.get(`${id}: back`)).toBeLessThan(1e-6);
  });
});

describe('what peft has no place for, and what is not read', () => {
  const save = (subject: Omit<Ours, 'id'>): (() => void) => {
    const adapter = makeOurs({ id: '', ...subject });
    return () => savePeft(adapter, join(folder, 'refused'));
  };

  test('refused when saving', () => {
    const adaptformer = graft(build('vit'), 'adaptformer', {}, { head: 'frozen' });
    expect(() => savePeft(adaptformer, join(folder, 'refused'))).toThrow(/no method like 'adaptformer'; lora and lokr/);
    expect(save({ backbone: 'vit', method: 'lokr', options: { rank: 2 } })).toThrow(
      /blocks\.0\.attn\.qkv\[q\].*one Kronecker product for the whole layer blocks\.0\.attn\.qkv/,
    );
    expect(save({ backbone: 'convnext', method: 'lokr', options: { rank: 2, at: { name: 'conv_dw' } } })).toThrow(
      /convolution in groups/,
    );
    const t5 = makeOurs({ id: '', backbone: 't5', method: 'lora', options: { rank: 2 } });
    expect(() => savePeft(t5, join(folder, 'refused'), { names: 'timm' })).toThrow(/no names of the format 'timm'/);
  });

  /** A good folder with some settings of its config exchanged. */
  function changed(settings: Record<string, unknown>): string {
    const path = join(folder, 'changed');
    savePeft(makeOurs({ id: '', backbone: 'vit', method: 'lora', options: { rank: 2, at: qkv } }), path);
    const file = join(path, 'adapter_config.json');
    const config = JSON.parse(readFileSync(file, 'utf8')) as object;
    writeFileSync(file, JSON.stringify({ ...config, ...settings }));
    return path;
  }

  const refusals: readonly [Record<string, unknown>, RegExp][] = [
    [{ use_dora: true }, /use_dora: .*DoRA.* are not read; train with use_dora=False/],
    [{ peft_type: 'IA3' }, /peft_type "IA3" is not read; LORA and LOKR are/],
    [{ bias: 'all' }, /bias: 'all'.*train with bias='none'/],
    [{ lora_bias: true }, /lora_bias: biases/],
    [{ fan_in_fan_out: true }, /fan_in_fan_out/],
    [{ init_lora_weights: 'pissa' }, /init_lora_weights: "pissa" changes the backbone/],
    [{ something_new: 3 }, /something_new: 3 is not understood/],
    [{ r: 0 }, /r: /],
    [{ r: 3 }, /has rank 2, and adapter_config\.json says 3/],
    [{ rank_pattern: { '(': 2 } }, /"\(" of adapter_config\.json is no regular expression/],
  ];
  test.each(refusals)('%j', (settings, message) => {
    const model = build('vit');
    expect(() => loadPeft(model, changed(settings))).toThrow(message);
    expect(model.grafts).toBeUndefined();
  });

  test('another model, other weights, other tensors', () => {
    const path = changed({});
    expect(() => loadPeft(build('resnet'), path)).toThrow(/it was trained beside vit, and this is resnet/);
    expect(() => loadPeft(build('resnet'), path, { fingerprint: 'ignore' })).toThrow(
      /for another model than resnet: it adapts 'blocks\.0\.attn\.qkv'.*names of own, timm, official, transformers, torchvision were tried/,
    );
    const other = build('vit');
    noGrad(() => other.getModule('blocks.0.attn.qkv').parameters()[0]?.add_(1));
    expect(() => loadPeft(other, path)).toThrow(/its weights are not those of this vit/);
    expect(loadPeft(other, path, { fingerprint: 'ignore', activate: 'no' }).isActive).toBe(false);
    const { tensors } = readSafetensors(join(path, 'adapter_model.safetensors'));
    const write = (extra: readonly [string, Tensor][]): string => {
      writeSafetensors(join(path, 'adapter_model.safetensors'), [...tensors, ...extra]);
      return path;
    };
    const one = randn([3]);
    const prefix = 'base_model.model.';
    expect(() => readPeft(write([['x', one]]))).toThrow(/'x' does not begin with base_model\.model\./);
    expect(() => readPeft(write([[`${prefix}a.lora_embedding_A`, one]]))).toThrow(/adapts an embedding/);
    expect(() => readPeft(write([[`${prefix}a.lora_magnitude_vector`, one]]))).toThrow(
      /is no factor that is understood/,
    );
    expect(() => loadPeft(build('vit'), write([[`${prefix}norm.weight`, randn([48])]]))).toThrow(
      /holds the whole module of 'norm\.weight'; .*only the classifier \('head'\)/,
    );
  });

  test('LoKr on convolutions that lie channels last computes what it merges', () => {
    const options = { rank: 2, at: { role: 'conv' } };
    const adapter = makeOurs({ id: '', backbone: 'resnet', method: 'lokr', options });
    const x = inputsOf(adapter.model);
    const before = run(adapter.model, x);
    adapter.merge();
    expect(difference(run(adapter.model, x), before)).toBeLessThan(TOLERANCE);
  });

  test('an adapter of ours is still what it was after saving, and loads into a model in memory', () => {
    const adapter = makeOurs({ id: '', backbone: 'vit', method: 'lora', options: { rank: 2 }, head: { classes: 5 } });
    const before = run(adapter.model, inputsOf(adapter.model));
    savePeft(adapter, join(folder, 'kept'), { classNames: ['a', 'b', 'c', 'd', 'e'] });
    expect(run(adapter.model, inputsOf(adapter.model)).equal(before)).toBe(true);
    const model = build('vit');
    loadState(model, build('vit').stateDict());
    const { remarks } = readPeft(join(folder, 'kept'));
    expect(remarks?.classNames).toEqual(['a', 'b', 'c', 'd', 'e']);
    loadPeft(model, join(folder, 'kept'), { name: 'again' });
    model.eval();
    expect(difference(run(model, inputsOf(model)), before)).toBeLessThan(1e-6);
  });
});
