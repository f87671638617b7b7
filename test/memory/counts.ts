/** Does things again and again; prints after which of them the number of live tensors, or of bytes, was another. */
import {
  adaptersOf,
  applyFunction,
  checkpoint,
  Context,
  createCustomModel,
  graft,
  grad,
  keep,
  memory,
  noGrad,
  randn,
  readSafetensors,
  scope,
  Trainer,
  DataLoader,
  Shapes,
  evaluate,
  writeSafetensors,
  type Tensor,
} from '../../lib/index.js';

const model = createCustomModel('cifar_resnet', { depth: 8, numClasses: 4 });
model.requiresGrad_(false);
const x = keep(randn([2, 3, 8, 8]));
const w = keep(randn([3, 3])).requiresGrad_();
const data = new Shapes({ task: 'size', count: 8, size: 16 });
const loader = new DataLoader({ dataset: data, batchSize: 4, transform: [{ kind: 'toFloat' }] });

function swallow(fn: () => unknown): void {
  try {
    fn();
  } catch (error) {
    if (!(error instanceof Error)) throw error;
  }
}

const cycles: Readonly<Record<string, () => unknown>> = {
  'forward in a scope': () => void scope(() => model.run(x).sum().item()),
  'grad in a scope': () => void scope(() => grad(w.mul(w).sum(), w)),
  'an exception in a scope': () => swallow(() => scope(() => { model.run(x); throw new Error('stop'); })), // prettier-ignore
  'an exception in nested scopes': () =>
    swallow(() => scope(() => noGrad(() => scope(() => { randn([4]); throw new Error('stop'); })))), // prettier-ignore
  "LibTorch's refusal in a scope": () => swallow(() => scope(() => randn([2]).mm(randn([3])))),
  'a hook that throws': () =>
    swallow(() => scope(() => { const y = w.mul(2); y.registerHook(() => { throw new Error('hook'); }); y.sum().backward(); })), // prettier-ignore
  'a custom function': () =>
    void scope(() => {
      const f = { forward: (a: Tensor) => a.exp(), backward: ([g]: (Tensor | null)[], _: unknown, [y]: readonly Tensor[]) => g!.mul(y!) }; // prettier-ignore
      return grad((applyFunction(f, [w]) as Tensor).sum(), w);
    }),
  checkpointing: () => {
    scope(() => {
      checkpoint(model, w.mul(1).sum().mul(x), new Context()).sum().backward();
    });
  },
  'graft and remove': () => {
    for (const [method, options] of [
      ['lora', { rank: 2, at: { role: 'conv' } }],
      ['conv_adapter', {}],
      ['ssf', {}],
      ['bitfit', {}],
      ['full', {}],
      ['linear_probe', {}],
    ] as const) {
      // prettier-ignore
      const adapter = graft(model, method, options, { name: method, head: { classes: 3 } });
      scope(() => model.run(x).sum().backward());
      adapter.remove();
    }
    if (adaptersOf(model).size > 0) throw new Error('an adapter stayed');
  },
  'merge, unmerge and remove': () => {
    const adapter = graft(model, 'lora', { rank: 2, at: { role: 'conv' } }, { head: { classes: 3 } });
    scope(() => adapter.merge({ probe: x }));
    adapter.unmerge();
    adapter.remove();
  },
  'a graft that fails': () => swallow(() => graft(model, 'lora', { rank: 2, at: { name: 'nowhere' } })),
  'writing and reading a file': () =>
    scope(() => {
      writeSafetensors('w.safetensors', new Map([['w', w]]));
      void readSafetensors('w.safetensors');
    }),
  evaluation: () => evaluate(model, loader),
  'a training run': async () => {
    const adapter = graft(model, 'bitfit', {}, { head: { classes: 4 } });
    await new Trainer({ model, adapter, train: loader, epochs: 1, logEvery: 1 }).fit();
    adapter.remove();
  },
};

const gc = (globalThis as { gc?: () => void }).gc ?? (() => {});
/** Live tensors and bytes once nothing unreachable is left. */
async function settled(): Promise<{ tensors: number; bytes: number }> {
  for (let i = 0; i < 3; i++) {
    gc();
    await new Promise((resolve) => setImmediate(resolve));
  }
  return memory();
}

const results: Record<string, unknown> = {};
for (const [name, cycle] of Object.entries(cycles)) {
  await cycle();
  w.grad = null;
  const before = await settled();
  for (let i = 0; i < 3; i++) await cycle();
  w.grad = null;
  const after = await settled();
  results[name] = { tensors: after.tensors - before.tensors, bytes: after.bytes - before.bytes };
}
process.stdout.write(JSON.stringify(results));
