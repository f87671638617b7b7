/** Deformable convolution v3. Wang et al., InternImage, CVPR 2023, arXiv 2211.05778, equation 2. */
import { aten, arange, autocast, buildInfo, operator, type Tensor } from '../tensor/index.js';
import { pair, type Size2 } from './site.js';

const fused = operator('torchgraft::dcnv3');

let compiled: boolean | undefined;

/** Whether the fused operator also takes tensors on a GPU. */
function cudaKernels(): boolean {
  return (compiled ??= buildInfo().cudaKernels);
}

/** Geometry of `dcnv3`. */
export interface Dcnv3Options {
  /** Height and width. Default 3. */
  readonly kernel?: Size2;
  /** Default 1. */
  readonly stride?: Size2;
  /** Pixels by which positions are shifted; what lies outside the image reads 0. Default 0. */
  readonly padding?: Size2;
  /** Default 1. */
  readonly dilation?: Size2;
  /** Channels of a group share offsets and weights. Default 1. */
  readonly groups?: number;
  /** Multiplies the regular grid around the kernel's center as well as the offsets. Default 1. */
  readonly offsetScale?: number;
  /** Leaves out the point in the middle of a square kernel of odd size. Default false. */
  readonly removeCenter?: boolean;
}

interface Geometry {
  readonly kernel: readonly [number, number];
  readonly stride: readonly [number, number];
  readonly padding: readonly [number, number];
  readonly dilation: readonly [number, number];
  readonly groups: number;
  readonly offsetScale: number;
  readonly removeCenter: boolean;
  /** Height and width of the output. */
  readonly size: readonly [number, number];
  /** Column and row of each point in the kernel: down the columns, the first column first. */
  readonly points: readonly (readonly [column: number, row: number])[];
}

function geometryOf(x: Tensor, o: Dcnv3Options): Geometry {
  const [kernel, stride, padding, dilation] = [o.kernel ?? 3, o.stride ?? 1, o.padding ?? 0, o.dilation ?? 1].map(
    pair,
  ) as [Geometry['kernel'], Geometry['stride'], Geometry['padding'], Geometry['dilation']];
  const { groups = 1, offsetScale = 1, removeCenter = false } = o;
  const isWhole = (values: readonly number[], least: number): boolean =>
    values.every((value) => Number.isInteger(value) && value >= least);
  if (x.ndim !== 4) throw new RangeError(`dcnv3: x must be [N, H, W, C], got [${x.shape.join(', ')}]`);
  if (![kernel, stride, dilation].every((values) => isWhole(values, 1)) || !isWhole(padding, 0)) {
    throw new RangeError(
      `dcnv3: kernel, stride and dilation must be positive integers and padding none below 0, got ${[kernel, stride, dilation, padding].map((v) => v.join(' x ')).join(', ')}`,
    );
  }
  if (removeCenter && (kernel[0] !== kernel[1] || kernel[0] % 2 === 0)) {
    throw new RangeError(`dcnv3: removeCenter needs a square kernel of odd size, got ${kernel.join(' x ')}`);
  }
  const channels = x.shape[3] ?? 0;
  if (!Number.isInteger(groups) || groups < 1 || channels % groups !== 0) {
    throw new RangeError(`dcnv3: ${channels} channels do not divide into ${groups} groups`);
  }
  const size = [0, 1].map((axis) => {
    const reach = (dilation[axis] ?? 1) * ((kernel[axis] ?? 1) - 1) + 1;
    const room = (x.shape[axis + 1] ?? 0) + 2 * (padding[axis] ?? 0) - reach;
    return room < 0 ? 0 : Math.floor(room / (stride[axis] ?? 1)) + 1;
  }) as [number, number];
  const points = Array.from({ length: kernel[0] * kernel[1] }, (_, p): [number, number] => [
    Math.floor(p / kernel[0]),
    p % kernel[0],
  ]).filter(([i, j]) => !(removeCenter && i === kernel[1] >> 1 && j === kernel[0] >> 1));
  return { kernel, stride, padding, dilation, groups, offsetScale, removeCenter, size, points };
}

function requireShape(tensor: Tensor, name: string, shape: readonly number[]): void {
  if (tensor.shape.join() !== shape.join()) {
    throw new RangeError(`dcnv3: ${name} must be [${shape.join(', ')}], got [${tensor.shape.join(', ')}]`);
  }
}

/**
 * Every output pixel sums, per group of channels, bilinear samples of the input at the kernel's points, each moved by
 * an offset and multiplied by a weight. All tensors have their channels last. Positions are in pixels; a sample is 0
 * outside the image.
 *
 * @param x [N, H, W, C]
 * @param offset [N, Ho, Wo, G * P * 2] for G groups and P points: of each point the offset along the width, then along
 *   the height; points run down the kernel's columns
 * @param mask [N, Ho, Wo, G * P], used as it is
 * @returns [N, Ho, Wo, C], in the dtype of x
 * @throws RangeError when shapes or options do not fit together
 */
export function dcnv3(x: Tensor, offset: Tensor, mask: Tensor, options: Dcnv3Options = {}): Tensor {
  const geometry = geometryOf(x, options);
  const { kernel, stride, padding, dilation, groups, offsetScale, removeCenter, size, points } = geometry;
  const [batch = 0] = x.shape;
  requireShape(offset, 'offset', [batch, ...size, groups * points.length * 2]);
  requireShape(mask, 'mask', [batch, ...size, groups * points.length]);
  if (x.device === 'meta') return x.newEmpty([batch, ...size, x.shape[3] ?? 0]);
  // Half precision is too coarse for positions: as in the official kernels, sums are taken in float32.
  const dtype = x.dtype === 'float64' ? 'float64' : 'float32';
  const [input, moves, weights] = [x.to(dtype), offset.to(dtype), mask.to(dtype)];
  if (x.device !== 'cpu' && !cudaKernels()) return composedDcnv3(input, moves, weights, geometry).to(x.dtype);
  const sampled = fused(
    ...[
      input,
      moves,
      weights,
      [...kernel],
      [...stride],
      [...padding],
      [...dilation],
      groups,
      offsetScale,
      removeCenter,
    ],
  ) as Tensor;
  return sampled.to(x.dtype);
}

/**
 * `dcnv3` of ATen operators, for tensors that the fused operator does not take: four corners of every sample are
 * gathered and summed with their weights. Needs memory for 4 P times the output. All three tensors in one dtype.
 */
export function composedDcnv3(x: Tensor, offset: Tensor, mask: Tensor, options: Dcnv3Options): Tensor {
  const { stride, padding, dilation, kernel, groups, offsetScale, size, points } = geometryOf(x, options);
  const [batch = 0, height = 0, width = 0, channels = 0] = x.shape;
  const [rows, columns] = size;
  const count = points.length;
  if (batch * rows * columns === 0) return x.newZeros([batch, rows, columns, channels]);
  const kind = { dtype: x.dtype, device: x.device };

  /** Positions along one axis [N, Ho, Wo, G, P]. */
  const positions = (axis: 0 | 1, moves: Tensor): Tensor => {
    const center = Math.floor((dilation[axis] * (kernel[axis] - 1)) / 2);
    const base = arange(size[axis], kind)
      .mul(stride[axis])
      .add(center - padding[axis]);
    // Points run down the kernel's columns.
    const taps = aten.stack(
      points.map((point) => base.newFull([], offsetScale * (point[(1 - axis) as 0 | 1] * dilation[axis] - center))),
    );
    const shaped = base.view(axis === 0 ? [1, rows, 1, 1, 1] : [1, 1, columns, 1, 1]);
    return moves.mul(offsetScale).add(taps).add(shaped);
  };
  const moves = offset.reshape([batch, rows, columns, groups, count, 2]);
  const px = positions(1, moves.select(-1, 0));
  const py = positions(0, moves.select(-1, 1));
  const inside = py.gt(-1).bitwiseAnd(px.gt(-1)).bitwiseAnd(py.lt(height)).bitwiseAnd(px.lt(width));
  const [y0, x0] = [py.detach().floor(), px.detach().floor()];
  const [ly, lx] = [py.sub(y0), px.sub(x0)];
  const strength = mask.reshape([batch, rows, columns, groups, count]);

  const corners = [0, 1].flatMap((dy) =>
    [0, 1].map((dx) => {
      const [yc, xc] = [y0.add(dy), x0.add(dx)];
      const there = inside.bitwiseAnd(yc.ge(0)).bitwiseAnd(yc.lt(height)).bitwiseAnd(xc.ge(0)).bitwiseAnd(xc.lt(width));
      const share = (dy === 0 ? ly.neg().add(1) : ly).mul(dx === 0 ? lx.neg().add(1) : lx);
      const index = yc
        .clamp(0, height - 1)
        .mul(width)
        .add(xc.clamp(0, width - 1));
      // A position that is not finite has no pixel; its weight is 0 and must stay so.
      const weight = share.mul(strength).maskedFill(there.bitwiseNot(), 0);
      return { index: index.nanToNum(0, 0, 0).to('int64'), weight };
    }),
  );
  // [N, G, Ho Wo, 4 P]
  const perGroup = (tensors: Tensor[]): Tensor =>
    aten
      .cat(tensors, -1)
      .reshape([batch, rows * columns, groups, 4 * count])
      .permute([0, 2, 1, 3]);
  const index = perGroup(corners.map((corner) => corner.index));
  const weight = perGroup(corners.map((corner) => corner.weight));
  const depth = channels / groups;
  const pixels = x.reshape([batch, height * width, groups, depth]).permute([0, 2, 1, 3]);
  const flat = index.reshape([batch, groups, -1, 1]).expand([-1, -1, -1, depth]);
  const samples = pixels.gather(2, flat).reshape([batch, groups, rows * columns, 4 * count, depth]);
  // Products of half precision would undo what the positions were kept exact for.
  const summed = autocast({ device: x.device, enabled: false }, () => weight.unsqueeze(-2).matmul(samples));
  return summed.squeeze(-2).permute([0, 2, 1, 3]).reshape([batch, rows, columns, channels]);
}
