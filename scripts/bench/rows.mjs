/** The rows of the benchmark: what runs, how often, and what of PyTorch's is compared. */

/**
 * @typedef {object} Row
 * @property {string} id
 * @property {string} title
 * @property {string} file our side: rows/FILE.mjs
 * @property {string} [peer] PyTorch's side: a key of python/rows.py
 * @property {object} [against] instead of PyTorch's side: ours once more, with these options
 * @property {Record<string, unknown>} options for both sides
 * @property {readonly string[]} layouts of the peer, of which the better counts; ours runs in `layout`
 * @property {string} [layout]
 * @property {boolean} [whole] compare the time of the whole process
 * @property {boolean} [stepMemory] compare not the memory of the processes but what the steps added to them
 */

const convolutional = ['nchw', 'channels_last'];
const tiny = { count: 20000, warmup: 3, steps: 9 };

/** @type {readonly Row[]} */
export const rows = [
  ...['tiny_add', 'tiny_add_grad', 'tiny_view', 'tiny_conv'].map((id) => ({
    id,
    title: {
      tiny_add: 'add of two 2x2',
      tiny_add_grad: 'add of two 2x2, recorded',
      tiny_view: 'view of 2x2',
      tiny_conv: 'conv2d 1x1 of 1x4x4x4',
    }[id],
    file: 'tiny',
    peer: id,
    options: tiny,
    layouts: ['nchw'],
  })),
  {
    id: 'import',
    title: 'start of the process to its end, one tensor printed',
    file: 'import',
    peer: 'import',
    options: {},
    layouts: ['nchw'],
    whole: true,
  },
  {
    id: 'import_inside',
    title: 'import to first tensor printed',
    file: 'import',
    peer: 'import',
    options: {},
    layouts: ['nchw'],
  },
  {
    id: 'train_cifar_resnet20_conv_adapter',
    title: 'cifar_resnet20 + Conv-Adapter, training step, 64 x 32x32',
    file: 'train',
    peer: 'train_cifar_resnet20_conv_adapter',
    options: { batch: 64, warmup: 4, steps: 15 },
    layouts: convolutional,
    layout: 'channels_last',
  },
  {
    id: 'train_resnet50_conv_adapter',
    title: 'resnet50 + Conv-Adapter, training step, 8 x 224x224',
    file: 'train',
    peer: 'train_resnet50_conv_adapter',
    options: { batch: 8, warmup: 2, steps: 6 },
    layouts: convolutional,
    layout: 'channels_last',
  },
  {
    id: 'train_vit_small_lora',
    title: 'vit_small + LoRA r=8 on qkv, training step, 8 x 224x224',
    file: 'train',
    peer: 'train_vit_small_lora',
    options: { batch: 8, warmup: 2, steps: 6 },
    layouts: convolutional,
  },
  {
    id: 'train_vit_small_ssf',
    title: 'vit_small + SSF, training step, 8 x 224x224',
    file: 'train',
    peer: 'train_vit_small_ssf',
    options: { batch: 8, warmup: 2, steps: 6 },
    layouts: convolutional,
  },
  ...[
    { id: 'train_vit_small_convpass', title: 'Convpass h=8' },
    { id: 'train_vit_small_fact', title: 'FacT-TT r=16' },
    { id: 'train_vit_small_vpt', title: 'VPT-deep 50' },
    { id: 'train_vit_small_krona', title: 'KronA on all linears (peer: folded products)' },
    { id: 'train_vit_small_krona_materialized', title: 'KronA on all linears (peer: product materialized)' },
  ].map(({ id, title }) => ({
    id,
    title: `vit_small + ${title}, training step, 8 x 224x224`,
    file: 'train',
    peer: id,
    options: { batch: 8, warmup: 2, steps: 6 },
    layouts: ['nchw'],
  })),
  ...[
    { id: 'train_convnext_tiny_ssf', title: 'convnext_tiny + SSF' },
    { id: 'train_hornet_tiny_linear_probe', title: 'hornet_tiny_7x7 + linear probe' },
    { id: 'train_hatnet_tiny_convpass', title: 'hatnet_tiny + Convpass h=8' },
    { id: 'train_internimage_t_ssf', title: 'internimage_t + SSF (peer: grid_sample)', batch: 4 },
    { id: 'train_ghostnet_conv_adapter', title: 'ghostnet_100 + Conv-Adapter' },
  ].map(({ id, title, batch = 8 }) => ({
    id,
    title: `${title}, training step, ${batch} x 224x224`,
    file: 'train',
    peer: id,
    options: { batch, warmup: 2, steps: 6 },
    layouts: convolutional,
    layout: 'channels_last',
  })),
  ...[
    { size: 56, channels: 64, groups: 4 },
    { size: 28, channels: 128, groups: 8 },
  ].map((sizes) => ({
    id: `dcnv3_${sizes.size}`,
    title: `DCNv3 forward and backward, 4 x ${sizes.size}x${sizes.size}x${sizes.channels}, ${sizes.groups} groups (peer: grid_sample)`,
    file: 'dcnv3',
    peer: 'dcnv3',
    options: { ...sizes, batch: 4, warmup: 3, steps: 10 },
    layouts: ['nchw'],
  })),
  {
    id: 'revcol_reversible',
    title: 'revcol_tiny, full fine-tuning step, 4 x 224x224: reversible against plain, both ours',
    file: 'train',
    // SGD: what AdamW holds is the same on both sides and has nothing to do with how the columns run.
    options: { batch: 4, warmup: 2, steps: 6, optimizer: 'sgd', modelOptions: { reversible: true } },
    against: { modelOptions: { reversible: false } },
    stepMemory: true,
    layouts: ['channels_last'],
    layout: 'channels_last',
  },
  ...[1, 8].flatMap((batch) => {
    const options = { batch, warmup: 3, steps: batch === 1 ? 20 : 8 };
    return [
      {
        id: `infer_resnet50_b${batch}`,
        title: `resnet50, inference, ${batch} x 224x224`,
        file: 'infer',
        peer: 'infer_resnet50',
        options,
        layouts: convolutional,
        layout: 'channels_last',
      },
      {
        id: `infer_vit_small_b${batch}`,
        title: `vit_small, inference, ${batch} x 224x224`,
        file: 'infer',
        peer: 'infer_vit_small',
        options,
        layouts: convolutional,
      },
    ];
  }),
];
