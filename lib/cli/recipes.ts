/**
 * Learning rates to begin with, by method: what worked with AdamW, batches of 64 and a pretrained backbone at the size of
 * CIFAR. They are defaults of the command line only; a method that is not listed starts at `DEFAULT_RATE`.
 */
const RATES: Readonly<Record<string, number>> = {
  linear_probe: 0.1,
  bitfit: 0.03,
  ssf: 0.03,
  lora: 0.01,
  conv_adapter: 0.01,
  full: 0.001,
};

const DEFAULT_RATE = 0.005;

/** Larger backbones want smaller steps: a tenth from this many parameters on. */
const LARGE = 5_000_000;

/** Learning rate for a method on a backbone of `parameters` parameters. */
export function defaultRate(method: string, parameters: number): number {
  return (RATES[method] ?? DEFAULT_RATE) / (parameters >= LARGE ? 10 : 1);
}
