/** One column of RevCol backwards: what entered it from what it gave, and the gradients of that; see `runColumns`. */
import { randomStates, restoreRandom, trainableOf } from '../nn/checkpointing.js';
import type { Context, Parameter } from '../nn/index.js';
import { fromTypedArray, grad, noGrad, scope, type Tensor, type TypedArray, zerosLike } from '../tensor/index.js';
import type { Column, Levels } from './revcol_blocks.js';

/** States of the random generators before a level, outside of LibTorch so that no scope need keep them. */
export type RandomState = TypedArray[];

/** The states now, on the device of `x`. */
export const readRandom = (x: Tensor): RandomState => scope(() => randomStates(x.device).map((state) => state.data()));

function writeRandom(x: Tensor, state: RandomState | undefined): void {
  scope(() => {
    restoreRandom(
      x.device,
      (state ?? []).map((bytes) => fromTypedArray(bytes, [bytes.length])),
    );
  });
}

/** The sum of gradients, of which either may be absent. */
export const sum = (a: Tensor | null, b: Tensor | null): Tensor | null => (a && b ? a.add(b) : (a ?? b));

/** Gradients that gather over columns and levels, for the stem's map and the parameters. */
export class GradientSums {
  readonly #sums = new Map<Tensor, Tensor>();

  add(to: Tensor, gradient: Tensor | null): void {
    if (gradient === null) return;
    const before = this.#sums.get(to);
    this.#sums.set(to, before ? before.add(gradient) : gradient);
    before?.dispose();
  }

  get(of: Tensor): Tensor | null {
    return this.#sums.get(of) ?? null;
  }

  values(): Iterable<Tensor> {
    return this.#sums.values();
  }
}

/** What `stepBack` needs. */
export interface StepBack {
  readonly column: Column;
  readonly stem: Tensor;
  /** What the column gave. */
  readonly levels: Levels;
  /** Gradients of it. */
  readonly grads: readonly (Tensor | null)[];
  /** What entered it, where that was kept. */
  readonly inputs: Levels | null;
  readonly isFirst: boolean;
  readonly states: readonly RandomState[];
  readonly entry: Context;
  readonly replay: <R>(fn: () => R) => R;
}

/** One column backwards: what entered it and the gradients of that; adds to the sums of parameters and stem. */
export function stepBack(step: StepBack, total: GradientSums, needsStem: boolean) {
  const { column, stem, levels, inputs, isFirst, states, entry, replay } = step;
  const grads = [...step.grads];
  const old: (Tensor | null)[] = [null, null, null, null];
  const oldGrads: (Tensor | null)[] = [null, null, null, null];
  for (let i = 3; i >= 0; i--) {
    const level = column.levels[i];
    const alpha = column.alphas[i];
    if (!level || !alpha) continue;
    const down = i === 0 ? stem : (levels[i - 1] as Tensor);
    const ups = isFirst ? [] : column.upsOf(i, (inputs ?? old) as unknown as Levels);
    const upGrads = scope(() => {
      writeRandom(stem, states[i]);
      const ctx = entry.fork();
      ctx.recomputing = true;
      const gradient = grads[i] ?? null;
      const leaves = [down, ...ups].map((t) =>
        t
          .detach()
          .to(stem.dtype)
          .requiresGrad_(gradient !== null),
      );
      const compute = (): Tensor => level.compute(leaves[0] as Tensor, leaves.slice(1), ctx);
      const own = gradient ? replay(compute) : replay(() => noGrad(compute));
      const previous = isFirst ? null : (inputs?.[i] ?? invert(levels[i] as Tensor, own, alpha));
      const parameters = gradient ? trainableOf(level) : [];
      const skipsDown = i === 0 && !needsStem;
      const sources = [...(skipsDown ? leaves.slice(1) : leaves), ...parameters];
      const found =
        gradient && sources.length > 0
          ? grad(own, sources, { gradOutputs: gradient.to(own.dtype), allowUnused: true })
          : sources.map(() => null);
      if (skipsDown) found.unshift(null);
      return {
        previous,
        downGrad: found[0] ?? null,
        upGrads: found.slice(1, leaves.length),
        parameterGrads: parameters.map((parameter, k) => [parameter, found[leaves.length + k] ?? null] as const),
        passed: gradient && previous ? gradient.to(stem.dtype).mul(alpha.detach()) : null,
        alphaGrad: alphaGradient(alpha, gradient, previous, isFirst),
      };
    });
    old[i] = upGrads.previous;
    if (i === 0) total.add(stem, upGrads.downGrad);
    else grads[i - 1] = sum(grads[i - 1] ?? null, upGrads.downGrad);
    oldGrads[i] = sum(oldGrads[i] ?? null, upGrads.passed);
    const coarser = i === 0 ? [1, 3] : [i + 1];
    upGrads.upGrads.forEach((g, k) => {
      const place = coarser[k] ?? 3;
      oldGrads[place] = sum(oldGrads[place] ?? null, g);
    });
    for (const [parameter, g] of upGrads.parameterGrads) total.add(parameter, g);
    total.add(alpha, upGrads.alphaGrad);
  }
  return { levels: isFirst ? null : (old as unknown as Levels), grads: oldGrads, sums: [...total.values()] };
}

/** c = (c' - L) / alpha. */
function invert(after: Tensor, own: Tensor, alpha: Parameter): Tensor {
  return noGrad(() => after.sub(own.detach()).div(alpha.detach()));
}

function alphaGradient(
  alpha: Parameter,
  gradient: Tensor | null,
  previous: Tensor | null,
  isFirst: boolean,
): Tensor | null {
  if (!alpha.requiresGrad) return null;
  if (isFirst) return zerosLike(alpha.detach());
  return gradient && previous ? gradient.mul(previous).sum([0, 2, 3], true).to(alpha.dtype) : null;
}
