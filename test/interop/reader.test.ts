/** Our own adapter folders read in Python by scripts/interop/adapters.py, beside the models of timm and transformers. */
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, test } from 'vitest';
import { graft, listMethods } from '../../lib/adapters/index.js';
import { readSafetensors } from '../../lib/checkpoint/index.js';
import { init } from '../../lib/nn/index.js';
import { manualSeed, noGrad, randn, scope, type Tensor } from '../../lib/tensor/index.js';
import { type BackboneId, build, difference, facts, filesOf, inputsOf, run } from './backbones.js';
import { findEnvironment, runJobs, runPython, temporaryFolder } from './python.js';
import { cases, type ReaderCase } from './reader_cases.js';

const TOLERANCE = 1e-5;
const python = await findEnvironment();
const folder = temporaryFolder();
const script = fileURLToPath(new URL('reader_jobs', import.meta.url));
const at = (name: string): string => join(folder, name);

const rows = cases.map((row, i) => ({
  ...row,
  name: `${row.method} on ${row.on}${row.note ? `, ${row.note}` : ''} ${JSON.stringify(row.options ?? {})}`,
  at: at(`case_${i}`),
}));

/** An adapter with values at which all of it acts, saved; its logits. */
function save({ method, on, options = {}, head = 'train' }: ReaderCase, path: string): Tensor {
  const model = build(on);
  const adapter = graft(model, method, options, { head, seed: 5 });
  manualSeed(31);
  noGrad(() => {
    for (const [name, parameter] of adapter.namedParameters())
      parameter.copy_(parameter.add(randn(parameter.shape).mul(name.endsWith('.scale') ? 0.02 : 0.05)));
    for (const [name, buffer] of adapter.namedBuffers()) {
      if (name.endsWith('running_var')) init.uniform_(buffer, 0.5, 2);
      if (name.endsWith('running_mean')) init.normal_(buffer, 0, 0.1);
    }
  });
  model.eval();
  adapter.save(path);
  return run(model, inputsOf(model, on));
}

/** What is refused, and why. */
const refusals: readonly {
  readonly name: string;
  readonly on: BackboneId;
  readonly method: string;
  readonly options: Readonly<Record<string, unknown>>;
  readonly message: RegExp;
}[] = [
  {
    name: 'prompts before the tokens of a Swin',
    on: 'swin',
    method: 'vpt',
    options: {},
    message: /prompts before the tokens.*VisionTransformer only/,
  },
  {
    name: 'a prefix in a T5',
    on: 't5',
    method: 'prefix',
    options: {},
    message: /learned keys and values.*not into T5/,
  },
  {
    name: 'mam in a BART',
    on: 'bart',
    method: 'mam',
    options: { width: 4 },
    message: /learned keys and values.*not into Bart/,
  },
  {
    name: 'prompt tuning of a T5',
    on: 't5',
    method: 'prompt_tuning',
    options: {},
    message: /prompt_tuning is set into timm's VisionTransformer/,
  },
  {
    name: 'a subspace of a T5',
    on: 't5',
    method: 'intrinsic_subspace',
    options: { dimension: 3 },
    message: /'block' of a T5/,
  },
  {
    name: 'roles that names do not tell',
    on: 'vit',
    method: 'lora',
    options: { rank: 2, at: { role: 'q' }, also: [{ at: { role: 'v' }, rank: 2, alpha: 6 }] },
    message: /which layers .*cannot be told by names/,
  },
];

interface Answer {
  /** How far the adapter moves the logits. */
  readonly change: number;
  /** What is left of that after `remove()`. */
  readonly left: number;
  /** Why `merged_state_dict` reads it not; empty where it does. */
  readonly refusal: string;
  /** What went wrong altogether, empty as a rule. */
  readonly error: string;
}

/** A model that an adapter was not set into: what was said, whether its tensors are what they were, and hooks in it. */
interface Refused {
  readonly error: string;
  readonly same: boolean;
  readonly hooks: number;
}

const refused = new Map<string, Refused>();
const found = new Map<string, Answer & { attached: number; merged: number | null }>();

describe.skipIf(python.command === null)(`the reader in Python${python.reason}`, () => {
  beforeAll(async () => {
    const ids = [...new Set(rows.map(({ on }) => on))];
    const files = new Map<BackboneId, object>(ids.map((id) => [id, scope(() => filesOf(id, folder))]));
    const expected = rows.map((row) => save(row, row.at));
    const jobs = rows.map((row) => {
      const { source, options } = facts(row.on);
      return { source, options, ...files.get(row.on), adapter: row.at, out: `${row.at}.safetensors` };
    });
    const refusable = refusals.map(({ on, method, options }, i) => {
      graft(build(on), method, options, { head: 'frozen', seed: 5 }).save(at(`refused_${i}`));
      return { source: facts(on).source, options: facts(on).options, adapter: at(`refused_${i}`) };
    });
    const answers = await runJobs<Answer | Refused>(python, script, folder, [...jobs, ...refusable]);
    refusals.forEach(({ name }, i) => refused.set(name, answers[rows.length + i] as Refused));
    rows.forEach(({ name, at: path }, i) => {
      const answer = answers[i] as Answer;
      const tensors = answer.error ? new Map<string, Tensor>() : readSafetensors(`${path}.safetensors`).tensors;
      const to = (key: string): number | null => {
        const logits = tensors.get(key);
        return logits ? difference(logits, expected[i] as Tensor) : null;
      };
      found.set(name, { ...answer, attached: to('attached') ?? NaN, merged: to('merged') });
    });
  }, 300_000);

  test.each(rows)('$name', ({ name, how }) => {
    const { error, change, left, refusal, attached, merged } = found.get(name) as NonNullable<
      ReturnType<typeof found.get>
    >;
    expect(error).toBe('');
    expect(change).toBeGreaterThan(1e-3);
    expect(attached).toBeLessThan(TOLERANCE);
    expect(left).toBe(0);
    if (how === 'merged') expect(merged).toBeLessThan(TOLERANCE);
    else expect(refusal).toMatch(/attach\(model, folder\)/);
  });

  test.each(refusals)('$name is refused, and nothing changes', ({ name, message }) => {
    expect(refused.get(name)).toEqual({ error: expect.stringMatching(message) as string, same: true, hooks: 0 });
  });

  test('refuses other models and other folders', async () => {
    const code = `
import adapters, sys, torch
for call in (lambda: adapters.attach(torch.nn.Linear(2, 2), sys.argv[1]), lambda: adapters.read(sys.argv[1] + "/..")):
    try:
        call()
    except (adapters.NotRead, OSError) as error:
        print(error)
`;
    const text = await runPython(python, ['-c', code, rows[0]!.at]);
    expect(text).toMatch(/Linear is no model that adapters are set into here; timm's[^]*No such file/);
  });

  test('the command merges what needs to know the model, and refuses what does not merge', async () => {
    const { source, options } = facts('vit');
    const merge = (method: string, out: string): string[] => {
      const row = rows.find(({ method: id, on, how }) => id === method && on === 'vit' && how === 'attached');
      const model = ['--model', source, '--options', JSON.stringify(options)];
      return ['adapters.py', row?.at ?? '', '--weights', at('vit.safetensors'), '--out', at(out), ...model];
    };
    await runPython(python, merge('fact', 'merged.safetensors'));
    const before = readSafetensors(at('vit.safetensors')).tensors;
    const after = readSafetensors(at('merged.safetensors')).tensors;
    const changed = [...before].filter(([name, tensor]) => !after.get(name)?.equal(tensor)).map(([name]) => name);
    expect(changed).toContain('blocks.0.attn.qkv.weight');
    expect(changed).not.toContain('patch_embed.proj.weight');
    await expect(runPython(python, merge('convpass', 'no.safetensors'))).rejects.toThrow(/does not merge: attach/);
  });

  test('every method is read', () => {
    expect(new Set(rows.map(({ method }) => method))).toEqual(new Set(listMethods()));
  });
});
