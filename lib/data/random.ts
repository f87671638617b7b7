/**
 * The random numbers of the data side: which image comes when, and what happens to it. They are a pure function of the
 * keys (seed, epoch, image ...), so a run repeats exactly on any machine, with any number of images decoded at once,
 * and from any batch on.
 */

/** What a stream of random numbers is for; keeps streams that share seed and epoch apart. */
export const Stream = {
  order: 1,
  augment: 2,
  split: 3,
  shapes: 4,
  balance: 5,
  scenes: 6,
  motion: 7,
  roads: 8,
} as const;

const TWO_32 = 2 ** 32;

/** A bijection of 32-bit words whose output bits all depend on all input bits (the finalizer of MurmurHash3). */
function mix(word: number): number {
  let h = word;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/**
 * A stream of random numbers named by its keys: xoshiro128** (Blackman & Vigna 2018), its state of four words filled by
 * hashing the keys one after the other.
 *
 * @example const random = new Random(seed, epoch, index); random.integer(10);
 */
export class Random {
  #a: number;
  #b: number;
  #c: number;
  #d: number;

  /** @param keys safe integers; the same keys in the same order give the same stream. */
  constructor(...keys: number[]) {
    let hash = 0x9e3779b9;
    for (const key of keys) {
      if (!Number.isSafeInteger(key)) throw new TypeError(`Random: a key must be a safe integer, got ${String(key)}`);
      hash = mix(hash ^ (key >>> 0));
      // The high half separates keys that agree modulo 2^32, negative ones included.
      hash = mix((hash + 0x9e3779b9) ^ (Math.floor(key / TWO_32) >>> 0));
    }
    const word = (): number => (hash = mix((hash + 0x9e3779b9) >>> 0));
    [this.#a, this.#b, this.#c, this.#d] = [word(), word(), word(), word() | 1];
  }

  /** The next 32 random bits, as an integer from 0 to 2^32 - 1. */
  uint32(): number {
    const s1 = this.#b;
    const scrambled = Math.imul(s1, 5);
    const result = Math.imul((scrambled << 7) | (scrambled >>> 25), 9) >>> 0;
    const c = this.#c ^ this.#a;
    const d = this.#d ^ s1;
    this.#b = s1 ^ c;
    this.#a ^= d;
    this.#c = c ^ (s1 << 9);
    this.#d = (d << 11) | (d >>> 21);
    return result;
  }

  /** A number from `low` (included) to `high` (excluded), in steps of (high - low) / 2^32. */
  uniform(low = 0, high = 1): number {
    return low + (high - low) * (this.uint32() / TWO_32);
  }

  /** An integer from 0 to `n` - 1, all equally likely; `n` at most 2^32. */
  integer(n: number): number {
    if (!Number.isInteger(n) || n < 1 || n > TWO_32) {
      throw new RangeError(`Random.integer: expected a whole number from 1 to 2^32, got ${String(n)}`);
    }
    // Draws beyond the largest multiple of n would favor small results.
    const limit = TWO_32 - (TWO_32 % n);
    for (;;) {
      const draw = this.uint32();
      if (draw < limit) return draw % n;
    }
  }

  /** True with probability `p`. */
  chance(p: number): boolean {
    return this.uniform() < p;
  }

  /** The integers from 0 to `n` - 1 in random order (Fisher-Yates). */
  permutation(n: number): Uint32Array {
    const order = new Uint32Array(n);
    for (let i = 0; i < n; i++) order[i] = i;
    return this.shuffle(order);
  }

  /** Shuffles `items` in place, and returns them. */
  shuffle<T extends { length: number; [index: number]: unknown }>(items: T): T {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      const item = items[i];
      items[i] = items[j];
      items[j] = item;
    }
    return items;
  }
}
