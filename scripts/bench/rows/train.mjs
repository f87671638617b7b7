/** Training steps as a user writes them: forward, cross-entropy, backward, optimizer of what the adapter trains. */
import {
  AdamW,
  SGD,
  createModel,
  crossEntropy,
  graft,
  manualSeed,
  randint,
  randn,
  scope,
  setNumThreads,
  trainingMode,
} from '../../../dist/torchgraft.js';
import { peakRss, timed } from '../measure.mjs';

const krona = vit('krona', { at: { role: 'linear', inBlock: true } });

/** @type {Record<string, { model: string, method: string, options: object, size: number, classes: number }>} */
const recipes = {
  train_cifar_resnet20_conv_adapter: {
    model: 'cifar_resnet20',
    method: 'conv_adapter',
    options: { reduction: 4 },
    size: 32,
    classes: 10,
  },
  train_resnet50_conv_adapter: {
    model: 'resnet50',
    method: 'conv_adapter',
    options: { reduction: 4 },
    size: 224,
    classes: 100,
  },
  train_vit_small_lora: {
    model: 'vit_small_patch16_224',
    method: 'lora',
    options: { rank: 8, at: { name: 'qkv' } },
    size: 224,
    classes: 100,
  },
  train_vit_small_ssf: vit('ssf', {}),
  train_vit_small_convpass: vit('convpass', { hidden: 8, scale: 0.1 }),
  train_vit_small_fact: vit('fact', { rank: 16 }),
  train_vit_small_vpt: vit('vpt', { tokens: 50, deep: true }),
  train_vit_small_krona: krona,
  train_vit_small_krona_materialized: krona,
  train_convnext_tiny_ssf: recipe('convnext_tiny', 'ssf'),
  train_hornet_tiny_linear_probe: recipe('hornet_tiny_7x7', 'linear_probe'),
  train_hatnet_tiny_convpass: recipe('hatnet_tiny', 'convpass', { hidden: 8, scale: 0.1 }),
  train_internimage_t_ssf: recipe('internimage_t', 'ssf'),
  train_ghostnet_conv_adapter: recipe('ghostnet_100', 'conv_adapter', { reduction: 4 }),
  revcol_reversible: recipe('revcol_tiny', 'full'),
};

/** @param {string} model @param {string} method @param {object} [options] */
function recipe(model, method, options = {}) {
  return { model, method, options, size: 224, classes: 100 };
}

/** @param {string} method @param {object} options */
function vit(method, options) {
  return recipe('vit_small_patch16_224', method, options);
}

/**
 * @param {{ row: string, threads: number, batch: number, layout: string, warmup: number, steps: number,
 *   modelOptions?: object, optimizer?: 'adamw' | 'sgd' }} options `modelOptions`: of the model, besides its number of
 *   classes; `optimizer`: AdamW by default, or SGD, which holds no state
 */
export default function measure({ row, threads, batch, layout, modelOptions, optimizer: kind, ...repeats }) {
  const { model: name, method, options, size, classes } = recipes[row];
  setNumThreads(threads);
  manualSeed(0);
  const model = createModel(name, { numClasses: classes, ...modelOptions });
  const adapter = graft(model, method, options);
  const memoryFormat = layout === 'channels_last' ? 'channels_last' : 'contiguous_format';
  model.to({ memoryFormat });
  trainingMode(model, { backbone: adapter.backboneMode });
  const x = randn([batch, 3, size, size]).to({ memoryFormat });
  const y = randint(0, classes, [batch]);
  const parameters = adapter.parameters();
  const optimizer =
    kind === 'sgd' ? new SGD(parameters, { lr: 1e-3 }) : new AdamW(parameters, { lr: 1e-3, weightDecay: 1e-4 });
  const step = () =>
    scope(() => {
      optimizer.zeroGrad();
      crossEntropy(model.run(x), y).backward();
      optimizer.step();
    });
  const resident = process.memoryUsage.rss();
  const times = timed(step, repeats);
  const trainable = parameters.reduce((sum, p) => sum + p.numel(), 0);
  return { ...times, grown: peakRss() - resident, trainable };
}
