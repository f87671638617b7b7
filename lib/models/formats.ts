/** A model's weights under the names that others have: timm's, its official repository's, transformers', torchvision's. */
import { applyKeyMap, invertKeyMap, type KeyMap } from '../checkpoint/index.js';
import { Conv2d, Linear } from '../nn/index.js';
import { empty, type Tensor, zeros } from '../tensor/index.js';
import { Bart } from './bart.js';
import { Clip } from './clip.js';
import { openaiVisionTransformer } from './clip_names.js';
import { ClipResNet, timmClipResnetNames } from './clip_resnet.js';
import { ClipVisionTransformer } from './clip_vit.js';
import { ConvNeXt, OFFICIAL_CONVNEXT_NAMES, OFFICIAL_ISOTROPIC_NAMES, TIMM_CONV_MLP } from './convnext.js';
import { EfficientNetV2 } from './efficientnet_v2.js';
import { GhostNet } from './ghostnet.js';
import type { Host } from './host.js';
import { ResNet } from './resnet.js';
import { ResNetV2 } from './resnetv2.js';
import { googleBitNames, timmBitNames } from './resnetv2_names.js';
import { Roberta } from './roberta.js';
import { microsoftSwinNames, SwinTransformer } from './swin.js';
import { WindowAttention } from './swin_blocks.js';
import { relativePositionIndex } from './swin_windows.js';
import { T5 } from './t5.js';
import { torchvisionConvnext, torchvisionEfficientNet, torchvisionSwin, torchvisionVit } from './torchvision_names.js';
import { transformersConvnext, transformersResnet, transformersSwin, transformersVit } from './transformers_names.js';
import { VisionTransformer } from './vit.js';
import { ViTBlock } from './vit_blocks.js';
import { fromGoogleVit, isGoogleVit, toGoogleVit } from './vit_npz.js';

/** Whose names: ours, timm's, the official repository's, those of transformers' files, torchvision's. */
export type NameFormat = 'own' | 'timm' | 'official' | 'transformers' | 'torchvision';

/** All of them. */
export const NAME_FORMATS: readonly NameFormat[] = ['own', 'timm', 'official', 'transformers', 'torchvision'];

/** A format of one model. */
interface Published {
  /** From the format's names to ours; null where `convert` does it. */
  readonly map: KeyMap;
  /** Names of ours that the format shares. */
  readonly shared?: RegExp;
  /** Modules in memory, where they are not called as in files. */
  readonly modules?: KeyMap;
  /** Buffers that the format's files hold and ours do not. */
  readonly buffers?: () => Map<string, Tensor>;
  /** What no key map can do, instead of it. */
  readonly convert?: (state: ReadonlyMap<string, Tensor>) => Map<string, Tensor>;
}

const SAME: Published = { map: [], shared: /./ };

/** DeiT III's files call the layer scale `gamma_1` and `gamma_2`. */
const DEIT3_NAMES: KeyMap = [
  { kind: 'rename', from: 'blocks.{i}.gamma_1', to: 'blocks.{i}.ls1.gamma' },
  { kind: 'rename', from: 'blocks.{i}.gamma_2', to: 'blocks.{i}.ls2.gamma' },
];

/** The models that timm builds with the option `conv_mlp`. */
const CONV_MLP_MODELS = /^convnext_(atto|femto|pico|nano|tiny_hnf)$/;

type Formats = Partial<Record<Exclude<NameFormat, 'own'>, Published>>;

/** timm's tower ends in a classifier where ours has a projection without a bias. */
function timmClip(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  if (state.has('head.weight') && state.has('proj.weight'))
    throw new RangeError("the format 'timm' has no name for a classifier behind CLIP's projection: head.weight");
  return new Map(
    [...state].flatMap(([name, tensor]): [string, Tensor][] =>
      name === 'proj.weight'
        ? [
            ['head.weight', tensor],
            ['head.bias', zeros([tensor.shape[0] ?? 0], { dtype: tensor.dtype, device: tensor.device })],
          ]
        : [[name, tensor]],
    ),
  );
}

function vitFormats(model: VisionTransformer): Formats {
  if (model.name.startsWith('deit3')) return { timm: SAME, official: { map: DEIT3_NAMES, shared: /./ } };
  const [block] = model.blocks;
  const heads = block instanceof ViTBlock ? block.attn.numHeads : 1;
  return {
    timm: SAME,
    official: model.name.startsWith('deit') ? SAME : { map: [], convert: (state) => toGoogleVit(state, heads) },
    transformers: { map: transformersVit.files, modules: transformersVit.modules },
    torchvision: { map: torchvisionVit },
  };
}

/** torchvision's buffers of a Swin: which row of the table of relative positions each pair of a window's places has. */
function swinIndices(model: SwinTransformer): Map<string, Tensor> {
  return new Map(
    model.namedModules().flatMap(([path, module]): [string, Tensor][] => {
      if (!(module instanceof WindowAttention)) return [];
      const [, stage = '', block = ''] = /^layers\.(\d+)\.blocks\.(\d+)\.attn$/.exec(path) ?? [];
      const name = `features.${2 * Number(stage) + 1}.${block}.attn.relative_position_index`;
      return [[name, relativePositionIndex(module.windows.window).flatten()]];
    }),
  );
}

/** The formats that a model's weights exist in, beside our own names. */
function formatsOf(model: Host): Formats {
  if (model instanceof Clip) {
    const isResNet = model.visual instanceof ClipResNet;
    return {
      official: { map: [], convert: () => model.officialState('openai') },
      ...(!isResNet && { transformers: { map: model.keyMapOf('transformers'), shared: /^logit_scale$/ } }),
    };
  }
  if (model instanceof ClipVisionTransformer) {
    return { timm: { map: [], convert: timmClip }, official: { map: openaiVisionTransformer } };
  }
  if (model instanceof ClipResNet) {
    return { timm: { map: timmClipResnetNames(model.stages.length) }, official: SAME };
  }
  if (model instanceof VisionTransformer) return vitFormats(model);
  if (model instanceof SwinTransformer) {
    const stages = model.featureLevels.length;
    const { files, modules } = transformersSwin(stages);
    return {
      timm: SAME,
      official: { map: microsoftSwinNames(stages), shared: /./ },
      transformers: { map: files, modules },
      torchvision: { map: torchvisionSwin(stages), shared: /^norm\./, buffers: () => swinIndices(model) },
    };
  }
  if (model instanceof ConvNeXt) {
    const isIsotropic = model.featureLevels.length === 1;
    const hasConvMlp = CONV_MLP_MODELS.test(model.name);
    return {
      timm: hasConvMlp ? { map: TIMM_CONV_MLP, shared: /./ } : SAME,
      official: { map: isIsotropic ? OFFICIAL_ISOTROPIC_NAMES : OFFICIAL_CONVNEXT_NAMES, shared: /./ },
      ...(!isIsotropic && { transformers: { map: transformersConvnext } }),
      ...(!isIsotropic && !hasConvMlp && { torchvision: { map: torchvisionConvnext(model.featureLevels.length) } }),
    };
  }
  if (model instanceof ResNet) {
    const isPlain = model.conv1 instanceof Conv2d && !/^(resnext|wide_)/.test(model.name);
    return {
      timm: SAME,
      official: SAME,
      ...(isPlain && { transformers: { map: transformersResnet } }),
      ...(model.conv1 instanceof Conv2d && { torchvision: SAME }),
    };
  }
  if (model instanceof ResNetV2) {
    const layers = model.layers;
    return { timm: { map: timmBitNames, shared: /./ }, official: { map: googleBitNames(layers) } };
  }
  if (model instanceof EfficientNetV2) {
    // torchvision pads on both sides, so that its files are for other networks than TensorFlow's.
    const isSymmetric = model.padding === 'symmetric';
    return {
      ...(!isSymmetric && { timm: SAME, official: SAME }),
      ...(isSymmetric && { torchvision: { map: torchvisionEfficientNet(model.kinds) } }),
    };
  }
  if (model instanceof GhostNet) return { timm: SAME, official: SAME };
  if (model instanceof T5 || model instanceof Bart || model instanceof Roberta)
    return { official: SAME, transformers: SAME };
  // The other families are spelled as in their official repositories.
  return { official: SAME };
}

/** The formats that `exportState` knows for a model. */
export function nameFormats(model: Host): NameFormat[] {
  const formats = formatsOf(model);
  return NAME_FORMATS.filter((format) => format === 'own' || formats[format] !== undefined);
}

function formatOf(model: Host, format: Exclude<NameFormat, 'own'>): Published {
  const found = formatsOf(model)[format];
  if (found) return found;
  throw new RangeError(`${model.name} has no names of the format '${format}'; it has ${nameFormats(model).join(', ')}`);
}

/**
 * A model's weights under the names, and in the layouts, of a published format.
 *
 * @param state of the model, in our names. Default: its own
 * @throws RangeError for a format that the model does not exist in, and for tensors that the format has no name for
 */
export function exportState(
  model: Host,
  format: NameFormat,
  state: ReadonlyMap<string, Tensor> = model.stateDict(),
): Map<string, Tensor> {
  if (format === 'own') return new Map(state);
  const { map, shared, buffers, convert } = formatOf(model, format);
  if (convert) return convert(state);
  const out = applyKeyMap(invertKeyMap(map), state).tensors;
  for (const [name, buffer] of buffers?.() ?? []) out.set(name, buffer);
  const left = [...out.keys()].filter((name) => state.has(name) && !(shared?.test(name) ?? false));
  if (left.length > 0) {
    throw new RangeError(
      `${model.name}: the format '${format}' has no name for ${left.slice(0, 5).join(', ')}` +
        (left.length > 5 ? ` and ${left.length - 5} more` : ''),
    );
  }
  return out;
}

/** What tells the files of transformers and torchvision apart, and of which models. */
const SIGNS: readonly {
  readonly sign: RegExp;
  readonly kind: new (...args: never[]) => Host;
  readonly format: 'transformers' | 'torchvision';
}[] = [
  { sign: /^vit\.embeddings\./, kind: VisionTransformer, format: 'transformers' },
  { sign: /^swin\.embeddings\./, kind: SwinTransformer, format: 'transformers' },
  { sign: /^convnext\.embeddings\./, kind: ConvNeXt, format: 'transformers' },
  { sign: /^resnet\.embedder\./, kind: ResNet, format: 'transformers' },
  { sign: /^encoder\.layers\.encoder_layer_0\./, kind: VisionTransformer, format: 'torchvision' },
  { sign: /^features\.1\.0\.attn\./, kind: SwinTransformer, format: 'torchvision' },
  { sign: /^features\.1\.0\.layer_scale$/, kind: ConvNeXt, format: 'torchvision' },
  { sign: /^features\.1\.0\.block\.0\.0\./, kind: EfficientNetV2, format: 'torchvision' },
];

/**
 * A published state dict in this model's names: those that `Host.convertStateDict` reads, the files of transformers and
 * torchvision, Google's archives of vision transformers.
 *
 * @throws RangeError for a file of another network that only its padding tells from this one
 */
export function importState(model: Host, state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  if (model instanceof VisionTransformer && isGoogleVit(state)) return model.convertStateDict(fromGoogleVit(state));
  const names = [...state.keys()];
  const foreign = SIGNS.find(({ sign, kind }) => model instanceof kind && names.some((name) => sign.test(name)));
  if (foreign && model instanceof EfficientNetV2 && model.padding !== 'symmetric') {
    throw new RangeError(
      `${model.name} pads as TensorFlow does, and torchvision's weights are for padding on both sides: create the model with { padding: 'symmetric' }`,
    );
  }
  const found = foreign && formatsOf(model)[foreign.format];
  if (!found) return model.convertStateDict(state);
  // Buffers of indices, which torchvision and older releases of transformers write.
  const weights = [...state].filter(([name]) => !name.endsWith('relative_position_index'));
  const isInMemory = found.modules && names.some((name) => /\.(q_proj|o_proj)\./.test(name));
  return model.convertStateDict(applyKeyMap(isInMemory ? found.modules : found.map, weights).tensors);
}

/** Some tensors of a model, named as another library's modules in memory, in our names; see `layerPieces`. */
export function fromModuleNames(
  model: Host,
  format: NameFormat,
  state: ReadonlyMap<string, Tensor>,
): Map<string, Tensor> {
  if (format === 'own') return new Map(state);
  const { modules, map } = formatOf(model, format);
  return applyKeyMap(modules ?? map, state).tensors;
}

/** Some consecutive outputs of a layer of ours, and the layer that they are in another library's model. */
export interface LayerPiece {
  /** Path of our module. */
  readonly path: string;
  /** First of our outputs, and how many. */
  readonly start: number;
  readonly length: number;
  /** Path of the other library's module. */
  readonly foreign: string;
}

/**
 * Which modules of another library's model our linear layers and convolutions are: one for each, or several where a
 * fused projection is three layers there. Layers that are no modules there are left out.
 */
export function layerPieces(model: Host, format: NameFormat): LayerPiece[] {
  const published = format === 'own' ? SAME : formatOf(model, format);
  const inverse = invertKeyMap(published.modules ?? published.map);
  return model.namedModules().flatMap(([path, module]): LayerPiece[] => {
    if (!(module instanceof Linear || module instanceof Conv2d)) return [];
    const { shape } = module.weight;
    const name = `${path}.weight`;
    const renamed = applyKeyMap(inverse, [[name, empty(shape, { device: 'meta' })]]).tensors;
    let start = 0;
    return [...renamed].flatMap(([foreign, tensor]) => {
      const [length = 0, ...rest] = tensor.shape;
      const piece = { path, start, length, foreign: foreign.replace(/\.weight$/, '') };
      start += length;
      const isLayer = foreign.endsWith('.weight') && rest.join() === shape.slice(1).join();
      const isNamed = foreign !== name || (published.shared?.test(name) ?? false);
      return isLayer && isNamed ? [piece] : [];
    });
  });
}
