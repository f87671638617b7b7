/** Small DenseCLIPs for segmentation, and what their tests share. */
import { ClipTokenizer } from '../../lib/models/index.js';
import { BatchNorm2d, Context } from '../../lib/nn/index.js';
import {
  createDenseClip,
  type CreateDenseClipOptions,
  type DenseClip,
  type DenseClipSizes,
  SCORE_MAP,
  TEXT_EMBEDDINGS,
} from '../../lib/systems/index.js';
import { manualSeed, noGrad, randint, randn, type Tensor } from '../../lib/tensor/index.js';

export const tokenizer = new ClipTokenizer(['s k', 'sk y</w>', 'r o', 'ro a', 'roa d</w>', 't r', 'tr e', 'tre e</w>']);
export const classes = ['sky', 'road', 'tree'];
export const text = { width: 8, heads: 2, layers: 1 };
export const resnet: DenseClipSizes = { visual: { layers: [1, 1, 1, 1], width: 2, outputDim: 6 }, text };
export const vit = (patchSize = 16): DenseClipSizes => ({
  visual: { patchSize, width: 12, layers: 4, heads: 2, outputDim: 6, outIndices: [0, 1, 2, 3] },
  text,
});
export const common = {
  classes,
  tokenizer,
  inputResolution: 64,
  contextDecoder: { width: 8, heads: 2, layers: 1 },
  channels: 8,
};

export function build(sizes: DenseClipSizes = resnet, options: Partial<CreateDenseClipOptions> = {}): DenseClip {
  manualSeed(9);
  const model = createDenseClip(sizes, { ...common, ...options });
  // The last norm of each block starts at 0 and would hide the block.
  noGrad(() => model.apply((part) => part instanceof BatchNorm2d && part.weight?.fill_(1)));
  return model;
}
export const images = randn([2, 3, 64, 32]);
export const labels = randint(0, 3, [2, 64, 32], { dtype: 'int64' });
export const number = (x: Tensor): number => Number(x.item());
export const distance = (a: Tensor, b: Tensor): number => number(a.sub(b).abs().max());

export function pass(model: DenseClip, x: Tensor = images) {
  const ctx = new Context();
  const logits = noGrad(() => model.run(x, ctx));
  return { logits, scores: ctx.aux.get(SCORE_MAP) as Tensor, text: ctx.aux.get(TEXT_EMBEDDINGS) as Tensor };
}
