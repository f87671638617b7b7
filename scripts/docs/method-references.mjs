/**
 * Where each method sits, and the published figure that its number of parameters is held against: on which backbone,
 * with which options, what the paper (or its code) says. Heads are not counted on either side unless it says so.
 *
 * @typedef {object} Reference
 * @property {string} where in words
 * @property {string} on backbone of the published figure
 * @property {Record<string, unknown>} [options] of the method there
 * @property {string} [says] the published figure; none where the text gives none that names its setting
 * @property {number} [frames] frames of a clip to measure the cost at inference on
 * @property {string} [image] a vision backbone to measure the cost at inference on, where `on` reads text
 */

const vit = 'vit_base_patch16_224';
const clip = 'vit_base_patch32_clip_quickgelu_224';

/** @type {Record<string, Reference>} */
export const references = {
  linear_probe: { where: 'the head', on: vit, says: '0' },
  full: { where: 'everything', on: 'resnet50', says: '23.5 M' },
  bitfit: { where: 'all biases', on: vit, says: '0.103 M' },
  lora: { where: 'queries and values; any linear layer or convolution with `at`', on: vit, says: '0.29 M' },
  ssf: {
    where: 'after every linear layer, convolution and norm',
    on: vit,
    says: '0.28 M with 100 classes (0.08 M of them)',
  },
  conv_adapter: {
    where: 'beside every spatial convolution of the blocks; `scheme` for whole blocks',
    on: 'resnet50',
    options: { reduction: 4 },
    says: 'about 3.5 % of full fine-tuning (0.8 M), its setting is not said',
  },
  vpt: {
    where: 'tokens at the input, or of every block',
    on: vit,
    options: { tokens: 50, deep: true },
    says: '0.46 M',
  },
  convpass: { where: 'beside attention and MLP', on: vit, says: '0.33 M' },
  fact: { where: 'all linear layers of the blocks', on: vit, options: { rank: 16 }, says: '61 K' },
  pro_tuning: { where: 'between the stages', on: 'resnet50' },
  adaptformer: { where: 'beside the MLP', on: vit, options: { hidden: 8 }, says: '0.16 M' },
  kadaptation: {
    where: 'queries and values; the default `variant` merges, the official one does not',
    on: clip,
    options: { variant: 'official' },
    says: '79,699 with heads of 57.55 classes (29,523 of them)',
  },
  pevit_lora: { where: 'queries and values', on: clip, says: '176,979 with these heads' },
  compacter: { where: 'behind the MLP', on: clip, says: '77,907 with these heads' },
  intrinsic_subspace: { where: 'weights of one submodule', on: vit },
  krona: {
    where: 'queries and values; any linear layer with `at`',
    on: 't5_base',
    options: { trainLayerNorm: true },
    says: '0.07 % of 223 M',
    image: vit,
  },
  krona_b: {
    where: 'beside the MLP',
    on: 't5_base',
    options: { trainLayerNorm: true },
    says: '0.07 %, with factors that are not said',
    image: vit,
  },
  krona_b_res: {
    where: 'beside the MLP',
    on: 't5_base',
    options: { trainLayerNorm: true },
    says: '0.07 %, with factors that are not said',
    image: vit,
  },
  lokr: { where: 'queries and values, convolutions', on: vit },
  adapter: {
    where: 'after or beside attention and MLP, by `design`',
    on: 'bart_large',
    options: { width: 512 },
    says: '6.1 % of 406 M',
    image: vit,
  },
  prefix: {
    where: 'keys and values of every attention',
    on: 'bart_large',
    options: { length: 200 },
    says: '3.6 % of 406 M',
    image: vit,
  },
  mam: { where: 'prefix in attention, adapter beside the MLP', on: 'bart_large', says: '6.7 % of 406 M', image: vit },
  prompt_tuning: { where: 'tokens at the input', on: vit },
  noah: { where: 'tokens, queries and values, after the MLP', on: vit },
  st_adapter: { where: 'before the MLP, on clips', on: clip, frames: 8 },
  spm: { where: 'between the stages', on: 'resnet50' },
};
