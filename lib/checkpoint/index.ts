/** Weights in files: safetensors, PyTorch, NumPy; finding the state dict in them; translating names. */
export { writeAtomically } from './atomic.js';
export type { Sink } from './atomic.js';
export { CheckpointError } from './errors.js';
export { applyKeyMap, invertKeyMap, isInvertible } from './keymap.js';
export type { KeyMap, KeyMapResult, KeyPattern, KeyRule, RenameRule } from './keymap.js';
export { readCheckpoint } from './load.js';
export type { Checkpoint, CheckpointFormat, ReadCheckpointOptions } from './load.js';
export { readNpy, readNpz, writeNpy, writeNpz } from './npy.js';
export type { Storable } from './pickler.js';
export { readTorchFile, writeTorchFile } from './pytorch.js';
export type { ReadTorchOptions } from './pytorch.js';
export { readSafetensors, SafetensorsFile, writeSafetensors } from './safetensors.js';
export type { ReadSafetensorsOptions, SafetensorsContent } from './safetensors.js';
export { StateDict, stateDictOf } from './unwrap.js';
export type { StateDictOptions, Wrapped } from './unwrap.js';
export { PickledRecord } from './values.js';
export type { PickleValue } from './values.js';
export { requirePath } from './region.js';
