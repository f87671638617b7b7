/** A small network and a small data set for the tests of training. */
import { BatchNorm2d, Conv2d, Dropout, Linear, Module, type Context } from '../../lib/nn/index.js';
import { fromTypedArray, manualSeed, tensor, type Tensor } from '../../lib/tensor/index.js';
import type { Batch, BatchSource } from '../../lib/train/index.js';

/** Convolution, BatchNorm, dropout, classifier: everything whose state a resumed run must bring back. */
export class TinyNet extends Module {
  readonly conv = new Conv2d(3, 8, { kernelSize: 3, padding: 1 });
  readonly bn = new BatchNorm2d(8);
  readonly drop: Dropout;
  readonly fc = new Linear(8, 3);

  constructor(dropout = 0) {
    super();
    this.drop = new Dropout(dropout);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const map = this.bn.run(this.conv.run(x, ctx), ctx).relu();
    return this.fc.run(this.drop.run(map.mean([2, 3]), ctx), ctx);
  }
}

/** The same network each time. */
export function tinyNet(dropout = 0): TinyNet {
  manualSeed(7);
  return new TinyNet(dropout);
}

/** Uniform numbers in [0, 1), the same for the same seed. */
export function uniform(seed: number): () => number {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const SIDE = 8;

/** Images of noise in which the color of class `index % 3` is bright; each epoch in another order, with other noise. */
export class ColorData implements BatchSource {
  readonly length: number;

  constructor(
    readonly samples: number,
    private readonly batchSize: number,
    private readonly o: { readonly isFixed?: boolean; readonly spoiled?: number; readonly delay?: number } = {},
  ) {
    this.length = Math.ceil(samples / batchSize);
  }

  async *epoch(epoch: number, from = 0): AsyncGenerator<Batch> {
    const order = Array.from({ length: this.samples }, (_, i) => i);
    if (this.o.isFixed !== true) shuffle(order, uniform(1000 + epoch));
    for (let b = from; b < this.length; b++) {
      if (this.o.delay !== undefined) await new Promise((resolve) => setTimeout(resolve, this.o.delay));
      yield this.batch(order.slice(b * this.batchSize, (b + 1) * this.batchSize), this.o.isFixed === true ? 0 : epoch);
    }
  }

  describe(index: number): string {
    return `color_${index}.png`;
  }

  private batch(indices: number[], epoch: number): Batch {
    const plane = SIDE * SIDE;
    const pixels = new Float32Array(indices.length * 3 * plane);
    indices.forEach((index, i) => {
      const random = uniform(index + 1_000_003 * epoch);
      for (let p = 0; p < 3 * plane; p++)
        pixels[i * 3 * plane + p] = random() - 0.5 + (Math.floor(p / plane) === index % 3 ? 0.8 : 0);
      if (index === this.o.spoiled) pixels[i * 3 * plane] = NaN;
    });
    const images = fromTypedArray(pixels, [indices.length, 3, SIDE, SIDE]);
    return {
      images,
      labels: tensor(
        indices.map((index) => index % 3),
        { dtype: 'int64' },
      ),
      indices,
    };
  }
}

function shuffle(list: number[], random: () => number): void {
  for (let i = list.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [list[i], list[j]] = [list[j]!, list[i]!];
  }
}
