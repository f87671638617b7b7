/** Our own adapter folders read in Python by scripts/interop/adapters.py, beside timm's models. */
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, test } from 'vitest';
import { graft, type GraftOptions } from '../../lib/adapters/index.js';
import { readSafetensors, writeSafetensors } from '../../lib/checkpoint/index.js';
import { createCustomModel } from '../../lib/models/index.js';
import { init } from '../../lib/nn/index.js';
import { manualSeed, noGrad, randn, scope, type Tensor } from '../../lib/tensor/index.js';
import { findEnvironment, runJobs, runPython, temporaryFolder } from './python.js';

const python = await findEnvironment();
const folder = temporaryFolder();
const script = fileURLToPath(new URL('reader_jobs', import.meta.url));

const models = {
  vit: {
    source: 'timm:vit_tiny_patch16_224',
    options: { img_size: 32, patch_size: 8, embed_dim: 48, depth: 2, num_heads: 4, num_classes: 5 },
    create: () =>
      createCustomModel('vit', { imgSize: 32, patchSize: 8, embedDim: 48, depth: 2, numHeads: 4, numClasses: 5 }),
  },
  resnet: {
    source: 'timm:resnet18',
    options: { num_classes: 5 },
    create: () => createCustomModel('resnet', { imgSize: 32, block: 'basic', layers: [2, 2, 2, 2], numClasses: 5 }),
  },
};

const rows: readonly {
  readonly id: string;
  readonly on: keyof typeof models;
  readonly method: string;
  readonly options?: Readonly<Record<string, unknown>>;
  readonly head?: NonNullable<GraftOptions['head']>;
  readonly hooks?: boolean;
}[] = [
  { id: 'linear_probe', on: 'vit', method: 'linear_probe' },
  { id: 'bitfit', on: 'vit', method: 'bitfit' },
  {
    id: 'lora on slices, a head behind a norm',
    on: 'vit',
    method: 'lora',
    options: { rank: 3, alpha: 5 },
    head: { classes: 5, norm: 'batch' },
  },
  { id: 'lora on convolutions', on: 'resnet', method: 'lora', options: { rank: 3 } },
  { id: 'lokr on slices', on: 'vit', method: 'lokr', options: { rank: 2, decomposeBoth: true } },
  { id: 'lokr on convolutions', on: 'resnet', method: 'lokr', options: { rank: 3 }, head: 'frozen' },
  {
    id: 'lokr, a core of kernels',
    on: 'resnet',
    method: 'lokr',
    options: { rank: 3, effectiveConv: true },
    head: 'frozen',
  },
  { id: 'krona', on: 'vit', method: 'krona', options: { scale: 0.5 } },
  { id: 'ssf', on: 'vit', method: 'ssf' },
  { id: 'adaptformer', on: 'vit', method: 'adaptformer', options: { hidden: 8 }, head: { classes: 5 }, hooks: true },
  {
    id: 'adaptformer behind, learned scale, norm',
    on: 'vit',
    method: 'adaptformer',
    options: { hidden: 8, placement: 'sequential', scale: 'learned', norm: 'in' },
    hooks: true,
  },
  { id: 'convpass', on: 'vit', method: 'convpass', options: { scale: 2 }, head: { classes: 5 }, hooks: true },
];

const found = new Map<string, { difference: number; change: number }>();

describe.skipIf(python.command === null)(`the reader in Python${python.reason}`, () => {
  beforeAll(async () => {
    const jobs = rows.map(({ on, method, options = {}, head = 'train', hooks = false }, i) =>
      scope(() => {
        manualSeed(31 + i);
        const { source, options: theirs, create } = models[on];
        const model = create();
        noGrad(() => {
          for (const [name, tensor] of model.namedState())
            if (tensor.ndim > 1) init.normal_(tensor, 0, 0.1);
            else if (/(running_var|bn\d\.weight)$/.test(name)) init.uniform_(tensor, 0.5, 1.5);
        });
        model.eval();
        const at = (name: string): string => join(folder, `${i}_${name}`);
        writeSafetensors(at('weights.safetensors'), model.stateDict());
        const adapter = graft(model, method, options, { head });
        noGrad(() => {
          for (const [name, parameter] of adapter.namedParameters())
            parameter.copy_(parameter.add(randn(parameter.shape).mul(name.endsWith('.scale') ? 0.02 : 0.05)));
          for (const [name, buffer] of adapter.namedBuffers())
            if (name.endsWith('running_var')) init.uniform_(buffer, 0.5, 2);
        });
        model.eval();
        adapter.save(at('adapter'));
        const x = randn([2, 3, 32, 32]);
        const logits = noGrad(() => model.run(x));
        writeSafetensors(at('reference.safetensors'), [
          ['x', x],
          ['logits', logits],
        ]);
        const files = { weights: at('weights.safetensors'), reference: at('reference.safetensors') };
        return { source, options: theirs, ...files, adapter: at('adapter'), out: at('out.safetensors'), hooks };
      }),
    );
    const changes = await runJobs<{ change: number }>(python, script, folder, jobs);
    rows.forEach(({ id }, i) => {
      const read = (name: string): Tensor =>
        readSafetensors(join(folder, `${i}_${name}.safetensors`)).tensors.get('logits') as Tensor;
      const expected = read('reference');
      const difference = Number(read('out').sub(expected).abs().max().item());
      found.set(id, {
        difference: difference / Math.max(1, Number(expected.abs().max().item())),
        change: changes[i]?.change ?? 0,
      });
    });
  }, 300_000);

  test.each(rows)('$id', ({ id }) => {
    expect(found.get(id)?.change).toBeGreaterThan(1e-3);
    expect(found.get(id)?.difference).toBeLessThan(1e-5);
  });

  test('says what it does not read', async () => {
    const model = models.vit.create();
    graft(model, 'convpass', {}, { head: 'frozen' }).save(join(folder, 'convpass'));
    const code = `
import adapters, sys
for call in (lambda: adapters.merged_state_dict(sys.argv[1], {}), lambda: adapters.read(sys.argv[1] + "/..")):
    try:
        call()
    except (ValueError, OSError) as error:
        print(error)
`;
    const text = await runPython(python, ['-c', code, join(folder, 'convpass')]);
    expect(text).toMatch(/'convpass' is not merged by this reader \(full, bitfit.*`torchgraft merge`/);
    expect(text).toMatch(/No such file/);
  });
});
