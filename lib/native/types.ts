/**
 * What the native addon exports. `csrc/binding/addon.cpp` is the other side of this list; nothing above `lib/native/`
 * sees it. A `Handle` is a JavaScript object that the addon has wrapped around one native tensor: an instance of the
 * class given to `setup`.
 */

/** An object that owns one native tensor. */
export type Handle = object;

/** A callable operator. Positional arguments follow the schema; keyword-only ones come in a trailing plain object. */
export type NativeFunction = (this: unknown, ...args: unknown[]) => unknown;

/** Numeric array that can hold a tensor's elements. */
export type TypedArray =
  Float32Array | Float64Array | Int8Array | Int16Array | Int32Array | BigInt64Array | Uint8Array | Uint16Array;

/** One argument or result of an operator's schema. */
export interface SchemaArgument {
  readonly name: string;
  /** The schema's own spelling, such as `Tensor?`, `SymInt[2]`, `ScalarType?`. */
  readonly type: string;
  readonly kwargOnly: boolean;
  /** The schema's spelling of the default, or null when there is none. */
  readonly defaultValue: string | null;
  readonly isOut: boolean;
}

/** One operator overload. */
export interface Schema {
  readonly name: string;
  readonly overload: string;
  readonly text: string;
  readonly arguments: readonly SchemaArgument[];
  readonly returns: readonly SchemaArgument[];
}

/** Classes that the addon instantiates, so that its objects and errors have real prototypes. */
export interface NativeClasses {
  /** Constructed with the number that the object must keep under `key`; 0 and none mean no tensor yet. */
  readonly Tensor: new (handle?: number) => Handle;
  /** Where objects keep the number of their tensor. */
  readonly key: symbol;
  /** Constructed with (message, { operator }). */
  readonly TorchError: new (message: string, details: { operator: string }) => Error;
}

/** An operator as the addon gives it. */
export interface RawOperator extends NativeFunction {
  /** Whether a number as result stands for a new tensor, of which the caller makes the object. */
  readonly numbers: boolean;
}

/** The addon as loaded; `addon.ts` makes a `NativeAddon` of it. */
export interface RawAddon extends Omit<NativeAddon, 'operator'> {
  operator(name: string, overload: string | null): RawOperator | undefined;
}

/** A file mapped into memory, privately: writes to its tensors never reach the file. */
export type MappedFile = object;

export interface NativeAddon {
  /** LibTorch the addon runs on, its build, and what it was compiled against. */
  buildInfo(): {
    torch: string;
    compiledAgainst: string;
    cuda: string | null;
    cudaKernels: boolean;
    cxx: string;
    parallel: string;
  };
  setup(classes: NativeClasses): void;

  // ---- operators ------------------------------------------------------------------------------------------------
  /**
   * A function for all overloads of `namespace::name` (overload chosen per call), or one overload when `overload` is a
   * string ('' is the default overload); undefined if LibTorch has no such operator. With `method` the receiver
   * (`this`) is the first argument.
   */
  operator(name: string, overload: string | null, method: boolean): NativeFunction | undefined;
  /** All schemas that the dispatcher knows. */
  schemas(): Schema[];

  // ---- tensors --------------------------------------------------------------------------------------------------
  /** Copies a typed array into a new CPU tensor of `shape`; `dtype` null means the array's own. */
  fromTypedArray(data: TypedArray, shape: readonly number[], dtype: string | null): Handle;
  /** A C-contiguous copy as the typed array of the dtype (raw 16-bit words for float16 and bfloat16, bytes for bool). */
  toTypedArray(tensor: Handle): TypedArray;
  item(tensor: Handle): number | bigint | boolean;
  /** Makes `object` (a fresh instance of a subclass) a second handle of the same native tensor. */
  adopt(object: Handle, tensor: Handle): void;
  /** Points `tensor` to the data of `source` (Variable::set_data): same object, new storage, dtype, device, shape. */
  setData(tensor: Handle, source: Handle): void;
  shape(tensor: Handle): number[];
  strides(tensor: Handle): number[];
  numel(tensor: Handle): number;
  dim(tensor: Handle): number;
  dtype(tensor: Handle): string;
  device(tensor: Handle): string;
  isContiguous(tensor: Handle, memoryFormat: string): boolean;
  sameStorage(a: Handle, b: Handle): boolean;
  isFreed(tensor: Handle): boolean;
  isTensor(value: unknown): boolean;
  /** Drops the native tensor now; later use of the handle is an error. Freeing twice is allowed. */
  free(tensor: Handle): void;

  // ---- memory ---------------------------------------------------------------------------------------------------
  /** Opens a scope; returns its token, which `scopeClose` takes back (checked: scopes nest). */
  scopeOpen(): number;
  /** Frees what was created since, except kept tensors and `survivors`, which move to the enclosing scope. */
  scopeClose(token: number, survivors: readonly Handle[]): void;
  /** Takes the tensor out of every scope. */
  keep(tensor: Handle): void;
  /** Live tensors with JavaScript handles, and the bytes of their distinct storages. */
  memory(): { tensors: number; bytes: number };
  /** Frees handles whose JavaScript objects have been collected; returns how many. Runs by itself as handles grow. */
  sweep(): number;

  // ---- autograd -------------------------------------------------------------------------------------------------
  requiresGrad(tensor: Handle): boolean;
  setRequiresGrad(tensor: Handle, flag: boolean): void;
  isLeaf(tensor: Handle): boolean;
  gradFn(tensor: Handle): string | null;
  grad(tensor: Handle): Handle | null;
  setGrad(tensor: Handle, grad: Handle | null): void;
  retainGrad(tensor: Handle): void;
  /** `grads` holds a tensor or null (ones for scalars) per output; `inputs` empty means all leaves. */
  backward(
    outputs: readonly Handle[],
    grads: readonly (Handle | null)[],
    retainGraph: boolean,
    createGraph: boolean,
    inputs: readonly Handle[],
  ): void;
  gradients(
    outputs: readonly Handle[],
    inputs: readonly Handle[],
    grads: readonly (Handle | null)[],
    retainGraph: boolean,
    createGraph: boolean,
    allowUnused: boolean,
  ): (Handle | null)[];
  /** Registers `hook` on the gradient of `tensor`; returns an id for `removeHook`. */
  registerHook(tensor: Handle, hook: (grad: Handle) => Handle | undefined): number;
  removeHook(tensor: Handle, id: number): void;
  /**
   * Connects `outputs` (computed without a graph) to `inputs` by a node whose backward calls
   * `backward(gradOutputs: (Handle | null)[]) => (Handle | null)[]` with one gradient per input. Returns the outputs as
   * seen by autograd. `name` appears in gradFn.
   */
  customFunction(
    name: string,
    inputs: readonly Handle[],
    outputs: readonly Handle[],
    backward: (gradOutputs: (Handle | null)[]) => (Handle | null)[],
  ): Handle[];

  // ---- modes (thread-local; the caller restores them in `finally`) ----------------------------------------------
  gradMode(): boolean;
  setGradMode(enabled: boolean): void;
  inferenceEnter(enabled: boolean): number;
  inferenceExit(token: number): void;
  /** Enters autocast; returns the previous state as an opaque token list for `autocastExit`. */
  autocastEnter(deviceType: string, dtype: string, enabled: boolean): number;
  autocastExit(token: number): void;

  /** Begins to count the multiply-accumulates of this thread; `macsExit` ends it and returns how many there were. */
  macsEnter(): number;
  macsExit(token: number): number;

  // ---- random, threads, devices -----------------------------------------------------------------------------------
  manualSeed(seed: number | bigint): void;
  rngState(device: string): Handle;
  setRngState(device: string, state: Handle): void;
  numThreads(): number;
  setNumThreads(n: number): void;
  allowUncheckedOperators(allow: boolean): void;
  deviceCount(type: string): number;
  synchronize(device: string): void;

  // ---- files ------------------------------------------------------------------------------------------------------
  mapFile(path: string): MappedFile;
  mapSize(file: MappedFile): number;
  /** A tensor over the mapping's bytes, without copying; checks range and, unless it must copy, alignment. */
  tensorFromMap(
    file: MappedFile,
    byteOffset: number,
    shape: readonly number[],
    dtype: string,
    strides?: readonly number[],
  ): Handle;
  /** A copy of the mapping's bytes. */
  mapBytes(file: MappedFile, byteOffset: number, length: number): Uint8Array;
  unmapFile(file: MappedFile): void;

  // ---- one call per step ------------------------------------------------------------------------------------------
  /** One optimizer step over parameter groups, reading gradients natively. See csrc/binding/optim.cpp. */
  optimizerStep(groups: readonly OptimizerGroup[]): void;
  /** Sets every gradient to none (or to zero). */
  zeroGrad(parameters: readonly Handle[], setToNone: boolean): void;
  /** Scales the gradients so that their joint L2 norm is at most `maxNorm`; returns the norm before, as a tensor. */
  clipGradNorm(parameters: readonly Handle[], maxNorm: number): Handle;
}

/** One parameter group of `optimizerStep`. Parameters without a gradient are passed over. */
export interface OptimizerGroup {
  readonly kind: 'sgd' | 'adam' | 'adamw';
  readonly parameters: readonly Handle[];
  /** State tensors, in the order of `parameters`: momentum buffers (sgd; empty without momentum), or first and second moments. */
  readonly first: readonly Handle[];
  readonly second: readonly Handle[];
  /** Float32 scalars counting steps (adam, adamw), or empty. */
  readonly steps: readonly Handle[];
  readonly lr: number;
  readonly weightDecay: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly momentum: number;
  readonly dampening: number;
  readonly nesterov: boolean;
  /** First step of momentum buffers: copy instead of average (sgd). */
  readonly isFirstStep: boolean;
  readonly maximize: boolean;
}
