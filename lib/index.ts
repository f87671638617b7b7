/** torchgraft: parameter-efficient fine-tuning of pretrained vision models, on LibTorch. */
export * from './tensor/index.js';
export * from './nn/index.js';
export * from './checkpoint/index.js';
export * from './models/index.js';
export * from './heads/index.js';
export * from './adapters/index.js';
export * from './systems/index.js';
export * from './data/index.js';
export * from './metrics/index.js';
export * from './train/index.js';
// The creation function; the method of that name goes by its id, 'full'.
export { full } from './tensor/index.js';
