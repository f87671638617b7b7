/** One builder per system. A new system is one import and one entry. */
import type { Builder } from '../builder.js';
import { convAdapter } from './conv_adapter.js';
import { convpass } from './convpass.js';
import { fact } from './fact.js';
import { ghostnet } from './ghostnet.js';
import { petlBaselines } from './petl_baselines.js';
import { proTuning } from './pro_tuning.js';
import { ssf } from './ssf.js';
import { timmBackbones } from './timm_backbones.js';
import { vpt } from './vpt.js';

const all: readonly Builder[] = [
  timmBackbones,
  convAdapter,
  ssf,
  petlBaselines,
  convpass,
  fact,
  vpt,
  ghostnet,
  proTuning,
];

export const builders: ReadonlyMap<string, Builder> = new Map(all.map((builder) => [builder.system, builder]));
