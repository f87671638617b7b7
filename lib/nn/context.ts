import { Tensor } from '../tensor/index.js';

/** What a forward pass may be told from outside. */
export interface ContextOptions {
  /** Name of the adapter that each sample of the batch uses, null for none; absent: the active adapters of the model. */
  adapters?: readonly (string | null)[];
  /** What the model reads beside its first input, by name, one row per sample: masks, the decoder's tokens. */
  inputs?: Readonly<Record<string, Tensor>>;
}

/** What an attention keeps in the state of a pass, under itself, while its heads run; grafts on the heads may read it. */
export interface AttentionState {
  /** Keys [B, H, S, d], grafts' included; values alike. */
  readonly k: Tensor;
  readonly v: Tensor;
  /** What is added to the scores (or, of bool, which of them count), or how it follows from the queries. */
  readonly mask: Tensor | null | ((queries: Tensor) => Tensor | null);
}

/**
 * The explicit context of one forward pass. Modules pass it on to the modules that they run; nothing about a pass lives
 * anywhere else. One context serves one pass: make a new one for the next.
 */
export class Context {
  /**
   * State that modules or grafts carry from site to site. The keys are objects owned by whoever stores something (a
   * module, a graft, a symbol), so that no two can collide. Values may be tensors, arrays, plain objects or Maps of
   * them: `runBlock` and `checkpoint` must be able to find the tensors inside.
   */
  readonly state: Map<unknown, unknown>;
  /** Auxiliary losses (scalars) that the trainer adds to the task's loss. */
  readonly losses: Tensor[] = [];
  /** Auxiliary outputs by name: attention maps, intermediate logits. */
  readonly aux: Map<string, Tensor>;
  /** Name of the adapter that each sample of the batch uses, null for none. */
  readonly adapters?: readonly (string | null)[];
  /** What the model reads beside its first input, by name, one row per sample. */
  readonly inputs: Readonly<Record<string, Tensor>>;
  /** True while activation checkpointing runs a stretch for the second time: leave running statistics alone. */
  recomputing = false;
  /** Height and width of the token grid, once the patches are embedded. */
  grid: readonly [height: number, width: number] | null = null;
  /** Number of tokens before the patch tokens (class token, registers, prompts that stay). */
  prefixTokens = 0;
  /** Frames per clip for video models; 1 for images. */
  frames = 1;

  constructor(options: ContextOptions = {}) {
    this.state = new Map();
    this.aux = new Map();
    this.inputs = options.inputs ?? {};
    if (options.adapters !== undefined) this.adapters = options.adapters;
  }

  /** A context that starts where this one stands, with its own maps and no losses yet, perhaps for other samples. */
  fork(adapters = this.adapters, inputs = this.inputs): Context {
    const copy = new Context(adapters === undefined ? { inputs } : { adapters, inputs });
    for (const [key, value] of this.state) copy.state.set(key, value);
    for (const [key, value] of this.aux) copy.aux.set(key, value);
    copy.recomputing = this.recomputing;
    copy.grid = this.grid;
    copy.prefixTokens = this.prefixTokens;
    copy.frames = this.frames;
    return copy;
  }

  /** Takes over what a fork has gathered and where it stands. */
  join(fork: Context): void {
    this.state.clear();
    for (const [key, value] of fork.state) this.state.set(key, value);
    for (const [key, value] of fork.aux) this.aux.set(key, value);
    this.losses.push(...fork.losses);
    this.grid = fork.grid;
    this.prefixTokens = fork.prefixTokens;
    this.frames = fork.frames;
  }

  /** Replaces every tensor in state, auxiliary outputs and losses, in a fixed order, by what `change` makes of it. */
  mapTensors(change: (tensor: Tensor) => Tensor): void {
    for (const [key, value] of this.state) this.state.set(key, mapped(value, change));
    for (const [key, value] of this.aux) this.aux.set(key, change(value));
    this.losses.forEach((loss, i) => (this.losses[i] = change(loss)));
  }
}

/** `value` with `change` applied to the tensors in it: itself, or inside arrays, plain objects and Maps. */
function mapped(value: unknown, change: (tensor: Tensor) => Tensor): unknown {
  if (value instanceof Tensor) return change(value);
  if (Array.isArray(value)) return value.map((item: unknown) => mapped(item, change));
  if (value instanceof Map) {
    return new Map(Array.from(value as Map<unknown, unknown>, ([key, item]) => [key, mapped(item, change)]));
  }
  if (typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === Object.prototype) {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, mapped(item, change)]));
  }
  return value;
}
