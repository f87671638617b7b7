/** One builder per system. A new system is one import and one entry. */
import type { Builder } from '../builder.js';
import { timmBackbones } from './timm_backbones.js';

export const builders: ReadonlyMap<string, Builder> = new Map(
  [timmBackbones].map((builder) => [builder.system, builder]),
);
