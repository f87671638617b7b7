/** Worker threads: `node worker_child.js MODE`. The addon in many environments of one process. */
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { fileURLToPath } from 'node:url';
import * as lib from '../../lib/index.js';
import type { Tensor } from '../../lib/index.js';

const self = fileURLToPath(import.meta.url);
const { AdamW, createCustomModel, functional: F, graft, manualSeed, memory, randint, randn, scope, tensor } = lib;

/** A few training steps; the loss depends on nothing but the seed. */
function train(steps: number): number {
  manualSeed(3);
  const model = createCustomModel('cifar_resnet', { depth: 8, numClasses: 4 });
  const adapter = graft(model, 'lora', { rank: 2, at: { role: 'conv' } }, { head: { classes: 4 } });
  const optimizer = new AdamW(adapter.parameters(), { lr: 0.01 });
  const x = randn([2, 3, 8, 8]);
  const y = randint(0, 4, [2]);
  let last = NaN;
  for (let i = 0; i < steps; i++) {
    last = scope(() => {
      const loss = F.crossEntropy(model.run(x), y);
      loss.backward();
      optimizer.step();
      optimizer.zeroGrad();
      return Number(loss.item());
    });
  }
  return last;
}

/** Graphs, hooks, custom functions and open work that nobody takes down. */
function litter(): unknown[] {
  const w = randn([3, 3]).requiresGrad_();
  const kept: Tensor[] = [w];
  w.registerHook((g) => g.mul(2));
  for (let i = 0; i < 50; i++) {
    const y = lib.applyFunction({ forward: (a) => a.exp(), backward: ([g], _, [z]) => g!.mul(z!) }, [w]) as Tensor;
    y.registerHook(() => undefined);
    kept.push(y.sum(), lib.keep(randn([8])));
  }
  return kept;
}

const global = globalThis as { litter?: unknown };

interface Task {
  readonly kind: 'train' | 'error' | 'litter' | 'forever' | 'memory';
}

function work({ kind }: Task): unknown {
  switch (kind) {
    case 'train':
      return train(5);
    case 'error':
      try {
        tensor([1, 2]).mm(tensor([1]));
      } catch (error) {
        return [error instanceof lib.TorchError, (error as Error).message.includes('aten::mm')];
      }
      return 'no error';
    case 'litter':
      global.litter = litter();
      return (global.litter as unknown[]).length;
    case 'memory':
      randn([10]).dispose();
      return memory().tensors;
    case 'forever':
      parentPort?.postMessage('started');
      for (;;)
        scope(() =>
          randn([32, 32])
            .mm(randn([32, 32]))
            .requiresGrad_()
            .sum()
            .backward(),
        );
  }
}

/** What a worker answers, and the code that it exits with. */
function start(kind: Task['kind'], terminate = false): Promise<{ answer: unknown; code: number }> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(self, { workerData: { kind } });
    let answer: unknown;
    worker.on('message', (message) => {
      answer = message;
      if (terminate) void worker.terminate();
    });
    worker.on('error', reject);
    worker.on('exit', (code) => resolve({ answer, code }));
  });
}

if (isMainThread) {
  const results: Record<string, unknown> = {};
  const mode = process.argv[2];
  if (mode === 'exit') {
    global.litter = litter();
    // Also a graph whose backward pass was begun and given up.
    const w = randn([2]).requiresGrad_();
    const y = w.mul(2);
    y.registerHook(() => {
      throw new Error('given up');
    });
    try {
      y.sum().backward();
    } catch {
      results['thrown'] = true;
    }
  } else if (mode === 'deep') {
    // A graph of 200,000 nodes of ours is taken down without recursion.
    const w = randn([1]).requiresGrad_();
    let y = w;
    for (let i = 0; i < 200_000; i++) {
      y = lib.applyFunction({ forward: (a) => a.mul(1), backward: ([g]) => g! }, [y]) as Tensor;
    }
    results['gradFn'] = y.gradFn;
    y.dispose();
  } else {
    const here = train(5);
    results['sequence'] = [await start('train'), await start('train')];
    // The random generator belongs to the process: beside others that draw from it a run does not repeat.
    results['together'] = await Promise.all([start('train'), start('error'), start('litter'), start('memory')]);
    results['terminated'] = (await Promise.all([start('forever', true), start('forever', true)])).map((r) => r.answer);
    results['here'] = [here, train(5)];
  }
  process.stdout.write(JSON.stringify(results));
} else {
  parentPort?.postMessage(work(workerData as Task));
}
