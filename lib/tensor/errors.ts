/**
 * LibTorch refused an operation: shapes that do not fit, a dtype without a kernel, no memory. The message has the
 * operator, its tensors' shapes and dtypes, and LibTorch's first line. Mistakes that need no LibTorch to notice are
 * `TypeError` and `RangeError`.
 */
export class TorchError extends Error {
  override readonly name = 'TorchError';
  /** Full name of the operator that failed, such as `aten::mm`; empty when none was running. */
  readonly operator: string;

  constructor(message: string, details: { operator: string; cause?: unknown } = { operator: '' }) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.operator = details.operator;
  }
}
