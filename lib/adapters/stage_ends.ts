/** Where methods that sit between the stages of a network put their parts. */
import type { Site } from '../nn/index.js';

/** The stages of a network that has some. */
export function stagesOf(sites: readonly Site[]): Site[] {
  return sites.filter(({ roles }) => roles.includes('stage'));
}

/**
 * The last block of each of `count` equal groups of the blocks of a network of one width.
 *
 * @throws RangeError when the blocks do not divide into so many groups, naming the method
 */
export function groupEnds(sites: readonly Site[], count: number, method: string): Site[] {
  const blocks = sites.filter(({ roles }) => roles.includes('block'));
  if (blocks.length === 0 || blocks.length % count !== 0) {
    throw new RangeError(
      `${method}: ${blocks.length} blocks cannot be cut into ${count} equal stages; give the option stages a divisor of ${blocks.length}`,
    );
  }
  return Array.from({ length: count }, (_, i) => blocks[((i + 1) * blocks.length) / count - 1] as Site);
}
