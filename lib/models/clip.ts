/**
 * CLIP with both towers: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021,
 * arXiv 2103.00020; openai/CLIP, commit d05afc4.
 */
import { z } from 'zod';
import type { KeyMap } from '../checkpoint/index.js';
import { Context, functional, Parameter } from '../nn/index.js';
import { full, scope, type Tensor } from '../tensor/index.js';
import type { Backbone } from './backbone.js';
import { type ClipFormat, clipKeyMap, fromClipNames, toClipNames, type VisualKind } from './clip_names.js';
import { ClipResNet, clipResnet } from './clip_resnet.js';
import { clipTextOptions, ClipTextTransformer } from './clip_text.js';
import { clipVit } from './clip_vit.js';
import type { Family } from './family.js';
import { Host } from './host.js';
import { parseOptions, suggestion } from './options.js';

const clipOptions = z.strictObject({
  /** Options of the image tower, as of the families `clip_vit` or `clip_resnet`. */
  visual: z.record(z.string(), z.unknown()),
  visualKind: z.enum(['vit', 'resnet']),
  /** Options of the text tower. */
  text: clipTextOptions.prefault({}),
});

/** What a CLIP is built from. */
export type ClipOptions = z.input<typeof clipOptions>;

/** Cosine similarities times the learned scale, images along rows in one and texts in the other. */
export interface ClipLogits {
  /** [B, K] for B images and K texts. */
  readonly perImage: Tensor;
  /** [K, B]. */
  readonly perText: Tensor;
}

/**
 * An image tower and a text tower that share a space. Adapters may be set into it: sites of the towers begin with
 * `visual.` and `text.`.
 *
 * ```ts
 * const clip = createClip('ViT-B/32');
 * loadWeights(clip, 'ViT-B-32.pt');
 * const { perImage } = clip.logits(images, tokenizer.tokenize(['a photo of a cat', 'a photo of a dog']));
 * ```
 */
export class Clip extends Host {
  readonly classifier = null;
  readonly visual: Backbone;
  readonly text: ClipTextTransformer;
  /** Logarithm of the factor of the cosine similarities. */
  readonly logit_scale: Parameter;
  readonly #kind: VisualKind;

  constructor(
    readonly name: string,
    visual: Backbone,
    text: ClipTextTransformer,
  ) {
    super();
    if (visual.numFeatures !== text.options.embedDim) {
      throw new RangeError(
        `${name}: images become vectors of ${visual.numFeatures} and texts of ${text.options.embedDim}; both towers must end in one space`,
      );
    }
    this.#kind = visual instanceof ClipResNet ? 'resnet' : 'vit';
    this.logit_scale = new Parameter(full([], Math.log(1 / 0.07)));
    this.visual = visual;
    this.text = text;
  }

  /** Images [B, 3, H, W] to embeddings [B, e], not normalized. */
  forward(images: Tensor, ctx: Context = new Context()): Tensor {
    return this.encodeImage(images, ctx);
  }

  /** Images [B, 3, H, W] to embeddings [B, e], not normalized. */
  encodeImage(images: Tensor, ctx: Context = new Context()): Tensor {
    return this.visual.run(images, ctx);
  }

  /** Token ids [K, n] (int64; see `ClipTokenizer`) to embeddings [K, e], not normalized. */
  encodeText(ids: Tensor, ctx: Context = new Context()): Tensor {
    return this.text.run(ids, ctx);
  }

  /** exp(logit_scale) times the cosine similarity of every image [B, e] with every text [K, e]. */
  similarity(imageFeatures: Tensor, textFeatures: Tensor): ClipLogits {
    const images = functional.normalize(imageFeatures, { dim: -1 });
    const texts = functional.normalize(textFeatures, { dim: -1 });
    const perImage = images.mul(this.logit_scale.exp()).matmul(texts.t());
    return { perImage, perText: perImage.t() };
  }

  /** `similarity` of images [B, 3, H, W] and token ids [K, n]. */
  logits(images: Tensor, ids: Tensor): ClipLogits {
    return this.similarity(this.encodeImage(images), this.encodeText(ids));
  }

  /** @throws TypeError always: CLIP classifies by texts; set a head onto its image tower instead */
  resetClassifier(): never {
    throw new TypeError(`${this.name} has no classifier; use its image tower (clip.visual) for one`);
  }

  /** From OpenAI's archive, transformers' CLIPModel or our own names. */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    const out = toClipNames(state, this.#kind);
    const visual = [...out].filter(([name]) => name.startsWith(VISUAL));
    for (const [name] of visual) out.delete(name);
    const inside = new Map(visual.map(([name, tensor]) => [name.slice(VISUAL.length), tensor]));
    for (const [name, tensor] of this.visual.convertStateDict(inside)) out.set(VISUAL + name, tensor);
    return out;
  }

  /** From the names of a published format to ours. Invertible. */
  keyMapOf(format: ClipFormat): KeyMap {
    return clipKeyMap(format, this.#kind);
  }

  /**
   * The weights under the names of a published format; those of the residual network exist in OpenAI's only. The image
   * tower's classifier, if it has one, keeps its name.
   */
  officialState(format: ClipFormat): Map<string, Tensor> {
    if (format === 'transformers' && this.#kind === 'resnet') {
      throw new RangeError("transformers has no CLIP with a residual network; write the format 'openai'");
    }
    return fromClipNames(this.stateDict(), this.#kind, format);
  }
}

const VISUAL = 'visual.';

interface Published {
  readonly visual: string;
  readonly embedDim: number;
  readonly width: number;
}

/** OpenAI's names; the image towers are registered in their families under timm's. */
const published: Readonly<Record<string, Published>> = {
  RN50: { visual: 'resnet50_clip', embedDim: 1024, width: 512 },
  RN101: { visual: 'resnet101_clip', embedDim: 512, width: 512 },
  RN50x4: { visual: 'resnet50x4_clip', embedDim: 640, width: 640 },
  RN50x16: { visual: 'resnet50x16_clip', embedDim: 768, width: 768 },
  RN50x64: { visual: 'resnet50x64_clip', embedDim: 1024, width: 1024 },
  'ViT-B/32': { visual: 'vit_base_patch32_clip_quickgelu_224', embedDim: 512, width: 512 },
  'ViT-B/16': { visual: 'vit_base_patch16_clip_quickgelu_224', embedDim: 512, width: 512 },
  'ViT-L/14': { visual: 'vit_large_patch14_clip_quickgelu_224', embedDim: 768, width: 768 },
  'ViT-L/14@336px': { visual: 'vit_large_patch14_clip_quickgelu_336', embedDim: 768, width: 768 },
};

/** OpenAI's names of the published models. */
export function listClips(): string[] {
  return Object.keys(published);
}

/**
 * A CLIP by OpenAI's name, with fresh weights.
 *
 * @param name `RN50`, `RN101`, `RN50x4`, `RN50x16`, `RN50x64`, `ViT-B/32`, `ViT-B/16`, `ViT-L/14`, `ViT-L/14@336px`
 * @param visual options of the image tower that differ, such as `imgSize`
 * @throws RangeError for an unknown name, with the nearest known; TypeError for a wrong option
 */
export function createClip(name: string, visual: Readonly<Record<string, unknown>> = {}): Clip {
  const found = Object.hasOwn(published, name) ? published[name] : undefined;
  if (found === undefined) {
    throw new RangeError(
      `there is no CLIP '${name}'${suggestion(name, listClips())}; there are ${listClips().join(', ')}`,
    );
  }
  const visualKind = found.visual.startsWith('vit') ? 'vit' : 'resnet';
  const variant = familyOf(visualKind).variants[found.visual] ?? {};
  const { embedDim, width } = found;
  const text = { embedDim, width, heads: width / 64 };
  return createCustomClip({ visualKind, visual: { ...variant, ...visual }, text }, name);
}

/** A CLIP of any size. @throws TypeError for unknown or wrong options; RangeError for sizes that do not fit together */
export function createCustomClip(options: ClipOptions, name = 'clip'): Clip {
  const { visual, visualKind, text } = parseOptions(clipOptions, options, name);
  const family = familyOf(visualKind);
  const parsed = parseOptions(family.options, visual, `${name}, image tower`);
  return scope(() => {
    const model = new Clip(name, family.create(name, parsed), new ClipTextTransformer(text));
    model.options = options;
    return model;
  });
}

function familyOf(kind: VisualKind): Family {
  return kind === 'vit' ? clipVit : clipResnet;
}
