/**
 * Names of DenseCLIP's checkpoints, and of CLIP's archives, to ours. Ours are the official ones but for the transformers,
 * whose blocks have timm's names.
 */
import { applyKeyMap, invertKeyMap, type KeyMap } from '../checkpoint/index.js';
import { openaiText, openaiViT, toClipNames } from '../models/clip_names.js';
import type { ClipTextOptions, Host } from '../models/index.js';
import type { Tensor } from '../tensor/index.js';
import { type DenseClipEncoder, DenseClipViT } from './dense_clip_encoders.js';

const BACKBONE = 'backbone.';
const TEXT = 'text_encoder.';

/** What brings a transformer's maps to the strides of levels: as new as the head. */
export const RESIZERS = /^backbone\.fpn\d(\.|$)/;

type State = ReadonlyMap<string, Tensor>;

/** Official names to ours. Invertible. */
export function denseClipKeyMap(encoder: DenseClipEncoder): KeyMap {
  const visual = encoder instanceof DenseClipViT ? openaiViT(BACKBONE, BACKBONE) : [];
  return [...visual, ...openaiText(TEXT, TEXT)];
}

/** A state dict in our names under the official ones. */
export function toOfficial(encoder: DenseClipEncoder, state: State): Map<string, Tensor> {
  return applyKeyMap(invertKeyMap(denseClipKeyMap(encoder)), state).tensors;
}

/** Tensors whose names begin with `prefix`, without it. */
export function below(prefix: string, state: Iterable<readonly [string, Tensor]>): Map<string, Tensor> {
  const inside = [...state].filter(([name]) => name.startsWith(prefix));
  return new Map(inside.map(([name, tensor]) => [name.slice(prefix.length), tensor]));
}

/** The same names, each after `prefix`. */
export function under(prefix: string, state: State): [string, Tensor][] {
  return Array.from(state, ([name, tensor]) => [prefix + name, tensor]);
}

/** A text tower in OpenAI's names or ours, to ours. */
export function textTower(state: State): Map<string, Tensor> {
  return state.has('text_projection') ? applyKeyMap(openaiText('', ''), state).tensors : new Map(state);
}

/** Whether a state dict is that of a whole CLIP, in any published format or our own names. */
export function isClip(state: State): boolean {
  const names = [...state.keys()];
  return (
    names.some((name) => /^(visual|vision_model)\./.test(name)) && !names.some((name) => name.startsWith(BACKBONE))
  );
}

/**
 * The towers of a whole CLIP as parts of a DenseCLIP: positions of images resampled to the encoder's grid, those of texts
 * cut off at the context's length.
 */
export function towersOf(clip: State, encoder: DenseClipEncoder, contextLength: number): Map<string, Tensor> {
  const own = toClipNames(clip, encoder instanceof DenseClipViT ? 'vit' : 'resnet');
  const text = below('text.', own);
  const positions = text.get('positional_embedding');
  if (positions && (positions.shape[0] ?? 0) > contextLength) {
    text.set('positional_embedding', positions.narrow(0, 0, contextLength));
  }
  return new Map([...under(BACKBONE, encoder.convertStateDict(below('visual.', own))), ...under(TEXT, text)]);
}

/**
 * A state dict in the official names, or in ours, to ours: of a model with an image tower `backbone` and a text tower
 * `text_encoder`. Positions of images fit the image tower afterwards.
 */
export function fromOfficial(state: State, encoder: Pick<Host, 'convertStateDict'>): Map<string, Tensor> {
  const rest = [...state].filter(([name]) => !name.startsWith(BACKBONE) && !name.startsWith(TEXT));
  return new Map([
    ...rest,
    ...under(BACKBONE, encoder.convertStateDict(below(BACKBONE, state))),
    ...under(TEXT, textTower(below(TEXT, state))),
  ]);
}

/**
 * The text tower of a CLIP in any published format or our own names, or a tower alone, in our names; positions beyond the
 * context are cut off.
 *
 * @throws RangeError when the state dict holds none
 */
export function clipTextTower(state: State, contextLength: number): Map<string, Tensor> {
  const isResNet = [...state.keys()].some((name) => name.startsWith('visual.layer1.'));
  const tower = isClip(state) ? below('text.', toClipNames(state, isResNet ? 'resnet' : 'vit')) : textTower(state);
  const positions = tower.get('positional_embedding');
  if (!positions || !tower.has('token_embedding.weight') || !tower.has('proj.weight'))
    throw new RangeError('there is no text tower of a CLIP in it');
  if ((positions.shape[0] ?? 0) > contextLength)
    tower.set('positional_embedding', positions.narrow(0, 0, contextLength));
  return tower;
}

/** Width of a head in all of OpenAI's text towers. */
const HEAD_WIDTH = 64;

/** Sizes of a text tower, in our names, from its weights; the number of heads is OpenAI's for the width. */
export function textTowerSizes(
  tower: State,
): Pick<ClipTextOptions, 'vocabSize' | 'width' | 'heads' | 'layers' | 'embedDim'> {
  const [vocabSize = 0, width = 0] = tower.get('token_embedding.weight')?.shape ?? [];
  const [embedDim = 0] = tower.get('proj.weight')?.shape ?? [];
  const blocks = [...tower.keys()].map((name) => Number(/^blocks\.(\d+)\./.exec(name)?.[1] ?? -1));
  const heads = Math.max(1, Math.round(width / HEAD_WIDTH));
  return { vocabSize, width, heads, layers: Math.max(-1, ...blocks) + 1, embedDim };
}
