/** What the builders of the unified view's models and of its bare layers share. */
import type { Adapter } from '../../../lib/adapters/index.js';
import type { Entry } from '../builder.js';
import { graftEntries, sharedEntries } from './adapted.js';

/** The released options' scale: a number, or the word for a learned one. */
export function scaleOf(scalar: string | number): number | 'learned' {
  return scalar === 'learnable_scalar' ? 'learned' : Number(scalar);
}

/** Official name of a graft's tensor in the released wrapper. */
export function wrapped(official: string): string {
  const name = official.replace(/\.lora\.down\.weight$/, '.ef_lora_A').replace(/\.lora\.up\.weight$/, '.ef_lora_B');
  const isPrompt = /^(wte|control_trans|(encoder_attn|decoder_self_attn|decoder_cross_attn)_(key|value)\.)/.test(name);
  return `${isPrompt ? 'prompt_model' : 'pretrained_model'}.${name}`;
}

/** Every tensor of an adapter under its official name, renamed. */
export function adapterEntries(adapter: Adapter, rename: (official: string) => string): [string, Entry][] {
  const naming = { graft: rename };
  return [...adapter.grafts.flatMap((g) => graftEntries(adapter, g, naming)), ...sharedEntries(adapter, naming)];
}
