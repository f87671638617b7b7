import {
  applyFunction,
  aten,
  autocast,
  enableGrad,
  getRngState,
  grad,
  isGradEnabled,
  ones,
  scope,
  setRngState,
  type CustomFunction,
  type Device,
  type DType,
  type Tensor,
} from '../tensor/index.js';
import type { Context } from './context.js';
import type { Module } from './module.js';
import type { Parameter } from './parameter.js';

/** Everything in `module` and its grafts that is being trained, each once. */
export function trainableOf(module: Module): Parameter[] {
  const found = new Set<Parameter>(module.parameters());
  for (const [, part] of module.namedModules()) {
    for (const parameter of part.grafts?.parameters() ?? []) found.add(parameter);
  }
  return [...found].filter((parameter) => parameter.requiresGrad);
}

/** The tensors that a context holds, each once, in a fixed order. */
export function tensorsOf(ctx: Context): Set<Tensor> {
  const found = new Set<Tensor>();
  ctx.mapTensors((tensor) => {
    found.add(tensor);
    return tensor;
  });
  return found;
}

/** What the graph must know of a run: the output and the tensors that are new in the context. */
function resultsOf(y: Tensor, ctx: Context, old: ReadonlySet<Tensor>): Tensor[] {
  return [y, ...[...tensorsOf(ctx)].filter((tensor) => tensor !== y && !old.has(tensor) && tensor.isFloatingPoint())];
}

/** The devices whose random numbers a run on `device` may draw. */
function generatorsOf(device: Device): Device[] {
  return device.startsWith('cuda') ? ['cpu', device] : ['cpu'];
}

/** The states of the generators that a run on `device` may draw from. */
export function randomStates(device: Device): Tensor[] {
  return generatorsOf(device).map(getRngState);
}

/** Puts those states back. */
export function restoreRandom(device: Device, states: readonly Tensor[]): void {
  generatorsOf(device).forEach((generator, i) => setRngState(states[i] as Tensor, generator));
}

/** What autocast makes of a matrix product on `device`, or null when it is off. No operator tells; a product does. */
function autocastDType(device: Device): DType | null {
  const dtype = scope(() => {
    const one = ones([1, 1], { dtype: 'float32', device });
    return aten.mm(one, one).dtype;
  });
  return dtype === 'float32' ? null : dtype;
}

/** Runs a function with a graph and with the mixed precision that is on for `device` now, whatever is on then. */
export function replayer(device: Device): <R>(fn: () => R) => R {
  const castDevice: Device = device === 'meta' ? 'cpu' : device;
  const dtype = autocastDType(castDevice);
  const options = dtype === null ? { device: castDevice, enabled: false } : { device: castDevice, dtype };
  return (fn) => enableGrad(() => autocast(options, fn));
}

/** Where a first pass leaves what it found, until `checkpoint` has fetched it. */
interface FirstPass {
  fork: Context | null;
  results: Tensor[];
}

/**
 * The function of `inputs` (x, `carried`, parameters, states of the random generators) that is differentiated by running
 * it again. It is made here and not inside `checkpoint` because it lives as long as the graph: as a closure there it would
 * hold the outputs, which hold the graph, and nothing would be freed.
 */
function replayable(
  module: Module,
  entry: Context,
  inputs: readonly Tensor[],
  carried: readonly Tensor[],
  pass: FirstPass,
): CustomFunction {
  const needsGrad = inputs.map((input) => input.requiresGrad);
  const device = inputs[0]?.device ?? 'cpu';
  const generators = generatorsOf(device).length;
  const parameters = inputs.slice(1 + carried.length, -generators);
  const replay = replayer(device);

  const backward: CustomFunction['backward'] = (gradOutputs, saved) =>
    scope(() => {
      const leaves = saved.slice(0, 1 + carried.length).map((t, i) => t.detach().requiresGrad_(needsGrad[i] ?? false));
      const places = new Map(carried.map((tensor, i) => [tensor, leaves[i + 1] ?? tensor]));
      const ctx = entry.fork();
      ctx.recomputing = true;
      ctx.mapTensors((tensor) => places.get(tensor) ?? tensor);
      const before = randomStates(device);
      restoreRandom(device, saved.slice(-generators));
      try {
        const results = resultsOf(
          replay(() => module.run(leaves[0] as Tensor, ctx)),
          ctx,
          new Set(leaves),
        );
        if (results.length !== gradOutputs.length) {
          throw new Error(
            `checkpoint: ${module.constructor.name} gave ${gradOutputs.length} results at first and ${results.length} when it was run again; it must do the same both times`,
          );
        }
        const reached = results.filter((result, i) => gradOutputs[i] && result.requiresGrad);
        if (reached.length === 0) return inputs.map(() => null);
        const gradients = gradOutputs.filter((gradient, i) => gradient !== null && results[i]?.requiresGrad);
        const sources = [...leaves, ...parameters].filter((_, i) => needsGrad[i]);
        const found = grad(reached, sources, { gradOutputs: gradients, allowUnused: true });
        let next = 0;
        return needsGrad.map((needed) => (needed ? (found[next++] ?? null) : null));
      } finally {
        restoreRandom(device, before);
      }
    });

  return {
    name: 'Checkpoint',
    forward: (x) => {
      const fork = entry.fork();
      // Only what the graph must hold outlives this: the activations inside are what checkpointing saves.
      const [results] = scope(() => {
        const y = module.run(x, fork);
        const list = resultsOf(y === x ? y.alias() : y, fork, new Set(carried));
        return [list, fork.state, fork.aux, fork.losses] as const;
      });
      pass.fork = fork;
      pass.results = results;
      return results;
    },
    backward,
  };
}

/** Puts the outputs that autograd knows in the place of the raw results, in the caller's context too. */
function connect(ctx: Context, pass: FirstPass, outputs: readonly Tensor[]): void {
  const { fork, results } = pass;
  if (fork === null) return;
  const places = new Map(results.map((result, i) => [result, outputs[i] ?? result]));
  fork.mapTensors((tensor) => places.get(tensor) ?? tensor);
  ctx.join(fork);
  pass.fork = null;
  pass.results = [];
}

/**
 * `module.run(x, ctx)` without keeping its activations: the backward pass runs the module a second time, with the same
 * random numbers, the same autocast and `ctx.recomputing` set. Outputs and gradients equal those of `run`, bit for bit
 * on the CPU. Chen et al. 2016, arXiv 1604.06174.
 *
 * The trainable parameters of the module and of the grafts in it are inputs of the recomputed function, so they train
 * also when `x` needs no gradient, as at the bottom of a frozen backbone. What modules put into `ctx` (state, losses,
 * auxiliary outputs) stays connected to the graph. Without a graph, or with nothing to train, this is just `run`.
 */
export function checkpoint(module: Module, x: Tensor, ctx: Context): Tensor {
  if (!isGradEnabled()) return module.run(x, ctx);
  const entry = ctx.fork();
  const carried = [...tensorsOf(entry)];
  // The states of the generators are inputs only so that they are freed with the graph.
  const inputs = [x, ...carried, ...trainableOf(module), ...randomStates(x.device)];
  if (!inputs.some((input) => input.requiresGrad)) return module.run(x, ctx);
  const pass: FirstPass = { fork: null, results: [] };
  const outputs = applyFunction(replayable(module, entry, inputs, carried, pass), inputs) as Tensor[];
  connect(ctx, pass, outputs);
  return outputs[0] as Tensor;
}

/**
 * Runs a block of a backbone: checkpointed if `setCheckpointing` says so, and in any case so that the tensors that it
 * makes on its way are freed when it is done (except its output, what it puts into `ctx`, and what the graph needs).
 * A graft that wants to hold on to another tensor calls `keep`.
 */
export function runBlock(block: Module, x: Tensor, ctx: Context): Tensor {
  return scope(() => {
    const y = block.checkpointing ? checkpoint(block, x, ctx) : block.run(x, ctx);
    return [y, ctx.state, ctx.aux, ctx.losses] as const;
  })[0];
}

/** `runBlock` for one block after the other, without holding all the outputs between them. */
export function runBlocks(blocks: Iterable<Module>, x: Tensor, ctx: Context): Tensor {
  return chain([...blocks], (block, y) => runBlock(block, y, ctx), x, ctx);
}

/** Runs one module after the other, without holding all the outputs between them. */
export function runChain(modules: readonly Module[], x: Tensor, ctx: Context): Tensor {
  return chain(modules, (module, y) => module.run(y, ctx), x, ctx);
}

/**
 * Runs `step` on one part after the other. Only about log2(parts) of the outputs between them are held at a time: halves
 * run in scopes, so what the first half handed to the second is freed when the second is done.
 */
function chain<P>(parts: readonly P[], step: (part: P, x: Tensor) => Tensor, x: Tensor, ctx: Context): Tensor {
  const [first] = parts;
  if (first === undefined) return x;
  if (parts.length === 1) return step(first, x);
  const middle = parts.length >> 1;
  return scope(() => {
    const between = chain(parts.slice(0, middle), step, x, ctx);
    return [chain(parts.slice(middle), step, between, ctx), ctx.state, ctx.aux, ctx.losses] as const;
  })[0];
}
