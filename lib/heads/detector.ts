/** What detectors have in common. */
import { Context } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { DenseModel, type FeatureSource } from './dense_model.js';
import {
  type Detection,
  type DetectionBatch,
  DetectionInput,
  type DetectionInputOptions,
  type DetectionTarget,
} from './detection_input.js';
import { PyramidBackbone, type PyramidBackboneOptions, PyramidSource } from './pyramid.js';

/** What all detectors can be told. */
export interface DetectorOptions {
  /**
   * The network that the pyramid reads; make a backbone of the registry a trunk first (`toTrunk`). Or a network with a
   * pyramid of its own, for which `pyramid` says nothing.
   */
  readonly body: FeatureSource | PyramidSource;
  readonly pyramid?: PyramidBackboneOptions;
  readonly input?: DetectionInputOptions;
}

/** Images of any size to boxes. `losses` trains it, `detect` uses it; both set the mode of nothing: call `train` and `eval`. */
export abstract class Detector extends DenseModel {
  protected readonly backbonePath: string;
  readonly backbone: PyramidSource;
  /** What the labels of the targets begin with. */
  protected readonly firstLabel: number = 0;
  readonly input: DetectionInput;

  constructor({ body, pyramid, input }: DetectorOptions) {
    super();
    this.backbone = body instanceof PyramidSource ? body : new PyramidBackbone(body, pyramid);
    this.backbonePath = `backbone.${this.backbone.bodyPath}`;
    this.input = new DetectionInput(input);
  }

  /**
   * Losses by torchvision's names; their plain sum is to be minimized.
   *
   * @param images [3, H, W] each, of any sizes, pixels in 0..1; or a batch [B, 3, H, W]
   * @param targets one for each image; an image may have no boxes ([0, 4] and [0])
   * @throws RangeError when shapes do not fit together
   */
  losses(
    images: Tensor | readonly Tensor[],
    targets: readonly DetectionTarget[],
    ctx: Context = new Context(),
  ): Readonly<Record<string, Tensor>> {
    const list = imageList(images);
    if (targets.length !== list.length || targets.length === 0) {
      throw new RangeError(`losses: ${list.length} images and ${targets.length} targets; give one for each image`);
    }
    const batch = this.input.prepare(list, targets);
    const losses = this.batchLosses(batch, ctx);
    const fromZero = batch.targets.map(({ boxes, labels }) => ({ boxes, labels: labels.sub(this.firstLabel) }));
    return { ...losses, ...this.backbone.auxiliaryLosses({ ...batch, targets: fromZero }, ctx) };
  }

  /** What is found in each image, by falling score, in its own pixels. Everything stays on the device. */
  detect(images: Tensor | readonly Tensor[], ctx: Context = new Context()): Detection[] {
    return this.batchDetections(this.input.prepare(imageList(images)), ctx);
  }

  override isUntouchable(name: string): boolean {
    return name.startsWith('backbone.') && this.backbone.isUntouchable(name.slice('backbone.'.length));
  }

  override isInClassifier(name: string): boolean {
    const isNew = name.startsWith('backbone.') && this.backbone.isNew(name.slice('backbone.'.length));
    return (super.isInClassifier(name) && !this.isUntouchable(name)) || isNew;
  }

  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    return this.backbone.convertStateDict(super.convertStateDict(state));
  }

  /** Losses, by name, of prepared images, whose labels begin with the detector's first one. */
  abstract batchLosses(batch: DetectionBatch, ctx: Context): Readonly<Record<string, Tensor>>;

  /** What is found in each of prepared images, in the pixels of the images as they were given. */
  abstract batchDetections(batch: DetectionBatch, ctx: Context): Detection[];

  /** @throws TypeError always: detectors have several outputs */
  forward(_images: Tensor, _ctx: Context): Tensor {
    throw new TypeError(`${this.name}: call losses(images, targets) or detect(images)`);
  }
}

/** A list of images from a list or a batch. */
function imageList(images: Tensor | readonly Tensor[]): readonly Tensor[] {
  return 'numel' in images ? images.unbind(0) : images;
}
