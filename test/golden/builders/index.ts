/** One builder per system. A new system is one import and one entry. */
import type { Builder } from '../builder.js';
import { clip } from './clip.js';
import { convAdapter } from './conv_adapter.js';
import { convnext } from './convnext.js';
import { convpass } from './convpass.js';
import { denseClip } from './dense_clip.js';
import { denseHeads } from './dense_heads.js';
import { fact } from './fact.js';
import { ghostnet } from './ghostnet.js';
import { hatnet } from './hatnet.js';
import { hornet } from './hornet.js';
import { krona } from './krona.js';
import { kadaptation } from './kadaptation.js';
import { revcol } from './revcol.js';
import { internimage } from './internimage.js';
import { lvAdapter } from './lv_adapter.js';
import { petlBaselines } from './petl_baselines.js';
import { proTuning } from './pro_tuning.js';
import { spm } from './spm.js';
import { representationSeparation } from './representation_separation.js';
import { ssf } from './ssf.js';
import { stAdapter } from './st_adapter.js';
import { t5 } from './t5.js';
import { timmBackbones } from './timm_backbones.js';
import { unified } from './unified.js';
import { vpt } from './vpt.js';

const all: readonly Builder[] = [
  timmBackbones,
  clip,
  convAdapter,
  ssf,
  kadaptation,
  petlBaselines,
  convpass,
  denseClip,
  denseHeads,
  fact,
  vpt,
  ghostnet,
  proTuning,
  hatnet,
  convnext,
  hornet,
  t5,
  krona,
  unified,
  revcol,
  stAdapter,
  representationSeparation,
  lvAdapter,
  spm,
  internimage,
];

export const builders: ReadonlyMap<string, Builder> = new Map(all.map((builder) => [builder.system, builder]));
