/** The loss of RevCol's intermediate supervision. Cai et al., ICLR 2023, arXiv 2212.11696, section 2.3 and appendix. */
import { functional } from '../nn/index.js';
import { tensor, type Tensor } from '../tensor/index.js';

/** What a supervised RevCol gives: `RevCol.supervised`. */
export interface Supervision {
  /** Logits [B, classes] of the classifiers, that of the last column last. */
  readonly logits: readonly Tensor[];
  /** Images [B, 3, H, W] of the decoders, as logits. */
  readonly images: readonly Tensor[];
}

/** What RevCol's intermediate outputs are compared with. */
export interface SupervisionTarget {
  /** Class indices [B], or distributions [B, classes] such as mixup makes. */
  readonly labels: Tensor;
  /** The images in 0..1 [B, 3, H, W]; see `pixelsOf`. */
  readonly pixels: Tensor;
}

/** Weights of the intermediate losses. */
export interface SupervisionOptions {
  /** Factor of the images' loss. Default 3, as in all published configurations. */
  readonly imageFactor?: number;
  /** Factor of the inner classifiers' loss. Default 0.7, as in all published configurations. */
  readonly classFactor?: number;
  /** For class indices only. Default 0.1. */
  readonly labelSmoothing?: number;
}

/** Normalized images back to pixels in 0..1, outside of the graph. */
export function pixelsOf(images: Tensor, { mean, std }: { mean: readonly number[]; std: readonly number[] }): Tensor {
  const perChannel = (values: readonly number[]): Tensor =>
    tensor([...values], { dtype: images.dtype, device: images.device }).view([1, -1, 1, 1]);
  return images.detach().mul(perChannel(std)).add(perChannel(mean)).clamp(0, 1);
}

/**
 * Σ_i (1 - i/n) F BCE(image_i, pixels) + ((i + 1)/(n + 1)) C CE(logits_i, labels) over the n inner columns, plus
 * CE(logits_n, labels); pixels are clamped to 0.01..0.99.
 *
 * @returns the sum, and one part per classifier
 * @throws RangeError unless there is one image less than logits
 */
export function compoundLoss(
  { logits, images }: Supervision,
  { labels, pixels }: SupervisionTarget,
  { imageFactor = 3, classFactor = 0.7, labelSmoothing = 0.1 }: SupervisionOptions = {},
): { loss: Tensor; parts: Tensor[] } {
  const inner = images.length;
  if (logits.length !== inner + 1) {
    throw new RangeError(
      `compoundLoss: ${logits.length} logits and ${inner} images; one image less than logits is expected`,
    );
  }
  const smoothing = labels.isFloatingPoint() ? 0 : labelSmoothing;
  const wanted = pixels.detach().clamp(0.01, 0.99);
  const parts = logits.map((scores, i) => {
    const classes = functional.crossEntropy(scores, labels, { labelSmoothing: smoothing });
    const image = images[i];
    if (!image) return classes;
    const pixelLoss = functional.bceWithLogits(image, wanted).mul((1 - i / inner) * imageFactor);
    return pixelLoss.add(classes.mul(((i + 1) / (inner + 1)) * classFactor));
  });
  return { loss: parts.reduce((sum, part) => sum.add(part)), parts };
}
