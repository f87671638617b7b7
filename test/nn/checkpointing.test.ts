import { describe, expect, it } from 'vitest';
import {
  BatchNorm2d,
  checkpoint,
  Context,
  Conv2d,
  Dropout,
  LayerNorm,
  Linear,
  Module,
  ReLU,
  runBlock,
  runBlocks,
  Sequential,
  type GraftSet,
  type Parameter,
} from '../../lib/nn/index.js';
import { autocast, manualSeed, noGrad, ones, randn, scope, tensor, type Tensor } from '../../lib/tensor/index.js';
import { settledMemory } from '../support/settled_memory.js';

/** A residual block with random numbers and statistics in it. */
class ConvBlock extends Module {
  readonly conv1 = new Conv2d(4, 4, { kernelSize: 3, padding: 1 });
  readonly bn = new BatchNorm2d(4);
  readonly drop = new Dropout(0.4);
  readonly conv2 = new Conv2d(4, 4, { kernelSize: 1 });

  forward(x: Tensor, ctx: Context): Tensor {
    const inner = this.bn.run(this.conv1.run(x, ctx), ctx).relu();
    return this.conv2.run(this.drop.run(inner, ctx), ctx).add(x);
  }
}

class MlpBlock extends Module {
  readonly norm = new LayerNorm(6);
  readonly fc = new Linear(6, 6);

  forward(x: Tensor, ctx: Context): Tensor {
    return this.fc.run(this.norm.run(x, ctx), ctx).tanh().add(x);
  }
}

type Runner = (block: Module, x: Tensor, ctx: Context) => Tensor;

const plain: Runner = (block, x, ctx) => block.run(x, ctx);

/** Gradients of all parameters, of the input if it has one, the output, and the buffers after two passes. */
function outcome(make: () => Module[], x: Tensor, runner: Runner): Tensor[] {
  manualSeed(7);
  const blocks = make();
  const input = x.detach().requiresGrad_(x.requiresGrad);
  const results: Tensor[] = [];
  for (let pass = 0; pass < 2; pass++) {
    const ctx = new Context();
    let y = input;
    for (const block of blocks) y = runner(block, y, ctx);
    ctx.losses.reduce((sum, loss) => sum.add(loss), y.square().mean()).backward();
    results.push(y.detach());
  }
  for (const block of blocks) {
    for (const [, parameter] of block.namedParameters()) if (parameter.grad) results.push(parameter.grad);
    for (const [, buffer] of block.namedBuffers()) results.push(buffer);
  }
  if (input.grad) results.push(input.grad);
  return results;
}

function expectSameBits(make: () => Module[], x: Tensor, count: number): void {
  const expected = outcome(make, x, plain);
  const actual = outcome(make, x, checkpoint);
  expect(actual.length).toBe(expected.length);
  expect(actual.length).toBeGreaterThanOrEqual(count);
  actual.forEach((value, i) => expect(value.equal(expected[i]!), `value ${i}`).toBe(true));
}

const images = randn([3, 4, 5, 5]);
const tokens = randn([2, 3, 6]);

describe('checkpoint', () => {
  it('gives the same bits as a plain run: outputs, gradients, statistics', () => {
    expectSameBits(() => [new ConvBlock(), new ConvBlock()], images, 2 + 12 + 6);
    expectSameBits(() => [new ConvBlock(), new ConvBlock()], images.clone().requiresGrad_(), 2 + 12 + 6 + 1);
    expectSameBits(() => [new MlpBlock(), new MlpBlock()], tokens, 2 + 8);
  });

  it('keeps nothing but inputs and outputs', () => {
    const y = checkpoint(new MlpBlock(), tokens, new Context());
    expect(y.gradFn).toContain('Checkpoint');
  });

  it('trains a graft on a frozen block whose input needs no gradient', () => {
    const make = (): { block: Module; graft: Linear } => {
      manualSeed(1);
      const block = new MlpBlock().freeze();
      const graft = new Linear(6, 6);
      const set: GraftSet = {
        apply: (module, x, ctx) => module.forward(x, ctx).add(graft.run(x, ctx)),
        parameters: () => graft.parameters(),
        modules: () => [graft],
      };
      block.getModule('fc').grafts = set;
      return { block, graft };
    };
    const [a, b] = [make(), make()];
    plain(a.block, tokens, new Context()).square().sum().backward();
    checkpoint(b.block, tokens, new Context()).square().sum().backward();
    expect(b.graft.weight.grad?.equal(a.graft.weight.grad!)).toBe(true);
    expect(b.graft.bias?.grad?.equal(a.graft.bias!.grad!)).toBe(true);
    expect(b.block.parameters().every((p) => p.grad === null)).toBe(true);
  });

  it('is a plain run where there is nothing to train or no graph', () => {
    const block = new MlpBlock();
    expect(noGrad(() => checkpoint(block, tokens, new Context())).requiresGrad).toBe(false);
    expect(checkpoint(block.freeze(), tokens, new Context()).gradFn).toBeNull();
  });

  it('carries state, losses and auxiliary outputs through the context', () => {
    const key = Symbol('memory');
    class Recurrent extends Module {
      readonly fc = new Linear(6, 6);

      forward(x: Tensor, ctx: Context): Tensor {
        const state = ctx.state.get(key) as { seen: Tensor[] } | undefined;
        const y = this.fc.run(state ? x.add(state.seen.at(-1)!) : x, ctx).tanh();
        ctx.state.set(key, { seen: [...(state?.seen ?? []), y.mul(0.5)] });
        ctx.losses.push(y.square().mean().mul(0.1));
        ctx.aux.set(`layer${state?.seen.length ?? 0}`, y);
        return y.sin();
      }
    }
    expectSameBits(() => [new Recurrent(), new Recurrent(), new Recurrent()], tokens, 2 + 6);
    const ctx = new Context();
    const blocks = [new Recurrent(), new Recurrent()];
    blocks.reduce((x, block) => checkpoint(block, x, ctx), tokens);
    expect([...ctx.aux.keys()]).toEqual(['layer0', 'layer1']);
    expect(ctx.losses.length).toBe(2);
    ctx.aux.get('layer1')!.sum().backward();
    expect(blocks[0]!.fc.weight.grad).not.toBeNull();
  });

  it('recomputes under the autocast of the first run', () => {
    for (const within of [false, true]) {
      const results = [plain, checkpoint].map((runner) => {
        manualSeed(2);
        const block = new MlpBlock();
        const forward = (): Tensor => runner(block, tokens, new Context()).float().square().sum();
        if (within) autocast({ dtype: 'bfloat16' }, () => forward().backward());
        else autocast({ dtype: 'bfloat16' }, forward).backward();
        return block.parameters().map((p) => p.grad);
      });
      results[0]!.forEach((grad, i) => expect(results[1]![i]?.equal(grad!), `parameter ${i}, ${within}`).toBe(true));
    }
  });

  it('nests, and goes back twice with retainGraph', () => {
    class Outer extends Module {
      readonly inner = new ConvBlock();

      forward(x: Tensor, ctx: Context): Tensor {
        return checkpoint(this.inner, x, ctx).mul(2);
      }
    }
    expectSameBits(() => [new Outer()], images, 2 + 6);
    const block = new MlpBlock();
    const loss = checkpoint(block, tokens, new Context()).sum();
    loss.backward(undefined, { retainGraph: true });
    const once = block.fc.weight.grad!.clone();
    loss.backward();
    expect(block.fc.weight.grad!.equal(once.mul(2))).toBe(true);
  });

  it('says so when the second run differs from the first', () => {
    class Fickle extends Module {
      readonly fc = new Linear(6, 6);

      forward(x: Tensor, ctx: Context): Tensor {
        if (!ctx.recomputing) ctx.losses.push(this.fc.weight.square().sum());
        return this.fc.run(x, ctx);
      }
    }
    const y = checkpoint(new Fickle(), tokens, new Context());
    expect(() => y.sum().backward()).toThrow(/Fickle gave 2 results at first and 1 when it was run again/);
  });

  it('passes on an input that a block returns as it is', () => {
    class Conditional extends Module {
      readonly gate: Parameter = new Linear(1, 1).weight;

      forward(x: Tensor): Tensor {
        return x;
      }
    }
    const x = ones([2]).requiresGrad_();
    checkpoint(new Conditional(), x, new Context())
      .mul(tensor([2, 3]))
      .sum()
      .backward();
    expect(x.grad?.tolist()).toEqual([2, 3]);
  });

  it('frees everything with the backward pass', () => {
    const blocks = [new ConvBlock(), new ConvBlock()];
    const step = (): void =>
      scope(() => {
        const ctx = new Context();
        const y = blocks.reduce((x, block) => checkpoint(block, x, ctx), images);
        y.sum().backward();
      });
    step();
    const before = settledMemory();
    for (let i = 0; i < 30; i++) step();
    const after = settledMemory();
    expect(after.tensors).toBeLessThanOrEqual(before.tensors);
    expect(after.bytes).toBeLessThanOrEqual(before.bytes);
  });
});

describe('runBlocks', () => {
  it('follows setCheckpointing', () => {
    const model = new Sequential(new MlpBlock(), new MlpBlock());
    const run = (): Tensor => runBlocks(model, tokens, new Context());
    expect(run().gradFn).not.toContain('Checkpoint');
    expect(
      model
        .setCheckpointing(true)
        .namedModules()
        .every(([, m]) => m.checkpointing),
    ).toBe(true);
    expect(run().gradFn).toContain('Checkpoint');
    expect(model.setCheckpointing(false).checkpointing).toBe(false);
    expect(run().gradFn).not.toContain('Checkpoint');
  });

  it('frees what a block makes on its way, not what it puts into the context', () => {
    let passing: Tensor | null = null;
    class Noisy extends Module {
      forward(x: Tensor, ctx: Context): Tensor {
        passing = x.mul(2);
        ctx.state.set('kept', [x.add(1)]);
        ctx.aux.set('out', x.add(2));
        ctx.losses.push(x.sum());
        return passing.add(1);
      }
    }
    const ctx = new Context();
    const y = runBlock(new Noisy(), ones([2]), ctx);
    expect(y.tolist()).toEqual([3, 3]);
    expect((passing as Tensor | null)?.isFreed).toBe(true);
    expect((ctx.state.get('kept') as Tensor[])[0]?.tolist()).toEqual([2, 2]);
    expect(ctx.aux.get('out')?.tolist()).toEqual([3, 3]);
    expect(ctx.losses[0]?.item()).toBe(2);
    expect(runBlock(new ReLU(), y, ctx).tolist()).toEqual([3, 3]);
  });
});
