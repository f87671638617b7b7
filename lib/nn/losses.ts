import { aten, type Tensor } from '../tensor/index.js';

/** What becomes of the losses of the elements. */
export type Reduction = 'none' | 'mean' | 'sum';

/** LibTorch's numbers for the reductions. */
const REDUCTIONS: Readonly<Record<string, number>> = { none: 0, mean: 1, sum: 2 };

function reductionCode(reduction: Reduction, loss: string): number {
  const code = REDUCTIONS[reduction];
  if (code === undefined) throw new TypeError(`${loss}: reduction must be 'none', 'mean' or 'sum', got '${reduction}'`);
  return code;
}

/** Options of `crossEntropy`. */
export interface CrossEntropyOptions {
  /** Weight per class, [C]. Default: all 1. */
  weight?: Tensor | null;
  /** Samples with this class index do not count (only for class indices). Default -100. */
  ignoreIndex?: number;
  /** Share of the target that is spread evenly over the classes, in [0, 1]. Default 0. */
  labelSmoothing?: number;
  /** Default `mean`: for class indices the mean weighted by the classes' weights, for probabilities over the samples. */
  reduction?: Reduction;
}

/**
 * -Σ_c q_c log softmax(logits)_c, with q the target distribution after label smoothing.
 *
 * @param logits [C], [B, C] or [B, C, ...]
 * @param target class indices, int64 [], [B] or [B, ...]; or probabilities of the shape and dtype of `logits`
 */
export function crossEntropy(logits: Tensor, target: Tensor, options: CrossEntropyOptions = {}): Tensor {
  const { weight = null, ignoreIndex = -100, labelSmoothing = 0, reduction = 'mean' } = options;
  if (!(labelSmoothing >= 0 && labelSmoothing <= 1)) {
    throw new RangeError(`crossEntropy: labelSmoothing must lie in [0, 1], got ${String(labelSmoothing)}`);
  }
  return aten.crossEntropyLoss(
    logits,
    target,
    weight,
    reductionCode(reduction, 'crossEntropy'),
    ignoreIndex,
    labelSmoothing,
  );
}

/** The label of pixels that do not count, in every mask after it is loaded, whatever its file calls them. */
export const IGNORE_INDEX = 255;

/** Options of `pixelCrossEntropy`. */
export interface PixelLossOptions {
  /** Pixels with this label do not count. Default 255. */
  ignoreIndex?: number;
  /** The mean is over the pixels that count (`valid`, the default), or over all, those that do not count being 0 (`all`). */
  average?: 'valid' | 'all';
}

/**
 * Cross entropy of segmentation: logits [B, K, h, w] are resampled to the size of `labels` [B, H, W] (integers) bilinearly,
 * corners not aligned. Without a pixel that counts it is 0.
 *
 * @throws RangeError when the batches differ
 */
export function pixelCrossEntropy(logits: Tensor, labels: Tensor, options: PixelLossOptions = {}): Tensor {
  const { ignoreIndex = IGNORE_INDEX, average = 'valid' } = options;
  const [batch = 0, height = 0, width = 0] = labels.shape;
  if (logits.ndim !== 4 || labels.ndim !== 3 || logits.shape[0] !== batch) {
    const given = `[${logits.shape.join(', ')}] and [${labels.shape.join(', ')}]`;
    throw new RangeError(`pixelCrossEntropy: expected logits [B, K, h, w] and labels [B, H, W], got ${given}`);
  }
  const isSame = logits.shape[2] === height && logits.shape[3] === width;
  const resized = isSame ? logits : aten.upsampleBilinear2d(logits, [height, width], false);
  const sum = crossEntropy(resized, labels.to('int64'), { ignoreIndex, reduction: 'sum' });
  return average === 'all' ? sum.div(labels.numel()) : sum.div(labels.ne(ignoreIndex).sum().clampMin(1));
}

/** (input - target)²; `reduction` is `mean` by default. */
export function mseLoss(input: Tensor, target: Tensor, { reduction = 'mean' }: { reduction?: Reduction } = {}): Tensor {
  return aten.mseLoss(input, target, reductionCode(reduction, 'mseLoss'));
}

/** Options of `bceWithLogits`. */
export interface BceOptions {
  /** Factor per element, broadcast to the loss. */
  weight?: Tensor | null;
  /** Factor of the positive term, broadcast: above 1 favors recall. */
  posWeight?: Tensor | null;
  /** Default `mean`. */
  reduction?: Reduction;
}

/** -[y log σ(x) + (1 - y) log(1 - σ(x))], computed from logits without overflow. Shapes of `logits` and `target` are equal. */
export function bceWithLogits(logits: Tensor, target: Tensor, options: BceOptions = {}): Tensor {
  const { weight = null, posWeight = null, reduction = 'mean' } = options;
  const code = reductionCode(reduction, 'bceWithLogits');
  return aten.binaryCrossEntropyWithLogits(logits, target, weight, posWeight, code);
}

/** Options of `klDiv`. */
export interface KlDivOptions {
  /** Whether the target is given as log-probabilities. Default false. */
  logTarget?: boolean;
  /** Default `mean` over all elements, as in PyTorch; `batchmean` divides by the batch alone and is the divergence. */
  reduction?: Reduction | 'batchmean';
}

/** target (log target - input): Kullback-Leibler divergence of log-probabilities `input` from probabilities `target`. */
export function klDiv(input: Tensor, target: Tensor, options: KlDivOptions = {}): Tensor {
  const { logTarget = false, reduction = 'mean' } = options;
  if (reduction !== 'batchmean') return aten.klDiv(input, target, reductionCode(reduction, 'klDiv'), { logTarget });
  return aten.div(aten.klDiv(input, target, reductionCode('sum', 'klDiv'), { logTarget }), input.shape[0] ?? 1);
}
