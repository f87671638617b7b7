/**
 * `adapter_config.json` as the package peft writes and reads it (Hugging Face, Apache-2.0; release 0.21): which of its
 * settings are understood, and what is refused by name.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { CONFIG_FILE } from '../core/folder.js';

const pattern = z.record(z.string(), z.number()).nullish();

const common = {
  r: z.int().positive(),
  rank_pattern: pattern,
  alpha_pattern: pattern,
  modules_to_save: z.array(z.string()).nullish(),
};

const schema = z.discriminatedUnion('peft_type', [
  z.looseObject({
    peft_type: z.literal('LORA'),
    ...common,
    lora_alpha: z.number(),
    lora_dropout: z.number().min(0).max(1).default(0),
    use_rslora: z.boolean().default(false),
  }),
  z.looseObject({
    peft_type: z.literal('LOKR'),
    ...common,
    alpha: z.number(),
    decompose_both: z.boolean().default(false),
    decompose_factor: z.int().default(-1),
    use_effective_conv2d: z.boolean().default(false),
  }),
]);

/** What of a config matters to us. */
export type PeftConfig = z.output<typeof schema>;

/** Settings that say where an adapter was put or how it was trained; the tensors themselves say where it sits. */
const WITHOUT_EFFECT = new Set([
  ...[
    'peft_type',
    'task_type',
    'peft_version',
    'auto_mapping',
    'base_model_name_or_path',
    'revision',
    'inference_mode',
  ],
  ...['r', 'lora_alpha', 'alpha', 'lora_dropout', 'use_rslora', 'rank_pattern', 'alpha_pattern', 'modules_to_save'],
  ...['target_modules', 'exclude_modules', 'layers_to_transform', 'layers_pattern', 'init_weights', 'runtime_config'],
  ...['decompose_both', 'decompose_factor', 'use_effective_conv2d', 'rank_dropout', 'rank_dropout_scale'],
  ...['module_dropout', 'megatron_core', 'qalora_group_size', 'loftq_config', 'eva_config', 'corda_config'],
]);

/** What to do instead, for settings that change what an adapter computes. */
const MERGE = 'merge it in Python (merge_and_unload) and bring the merged weights';
const REFUSED: Readonly<Record<string, string>> = {
  use_dora: `weight-decomposed adapters (DoRA) are not read; train with use_dora=False, or ${MERGE}`,
  use_qalora: `QA-LoRA pools its input; train with use_qalora=False, or ${MERGE}`,
  lora_bias: `biases of the second factor are not read; train with lora_bias=False, or ${MERGE}`,
  fan_in_fan_out: "layers that store their weight transposed (GPT-2's Conv1D) are in no model here",
  layer_replication: `models with replicated layers cannot be built here; ${MERGE}`,
  trainable_token_indices: `trained rows of embeddings are not read; ${MERGE}`,
  target_parameters: `adapters of bare parameters are not read, only of layers; ${MERGE}`,
  megatron_config: 'layers of Megatron are in no model here',
};

/** Starts of LoRA that leave the backbone's weights as they are. The others move a part of the weights into the adapter. */
const PLAIN_STARTS = new Set<unknown>([true, false, undefined, null, 'gaussian', 'orthogonal', 'eva']);

const isSet = (value: unknown): boolean =>
  value !== null &&
  value !== undefined &&
  value !== false &&
  !(typeof value === 'object' && Object.keys(value).length === 0);

/** Reads the config of a folder. @throws Error that names the file, the setting that is not understood, and what would be */
export function readPeftConfig(folder: string): PeftConfig {
  const file = join(folder, CONFIG_FILE);
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    throw new Error(`${folder} is no adapter folder of peft: ${CONFIG_FILE} is missing or no JSON`, { cause: error });
  }
  if (typeof json !== 'object' || json === null) throw new Error(`${file}: expected an object`);
  const raw = json as Readonly<Record<string, unknown>>;
  const fail = (message: string): never => {
    throw new RangeError(`${file}: ${message}`);
  };
  const type = raw['peft_type'];
  if (raw['format'] === 'torchgraft') fail("is an adapter of torchgraft's own; load it with loadAdapter");
  if (type !== 'LORA' && type !== 'LOKR')
    fail(`peft_type ${JSON.stringify(type)} is not read; LORA and LOKR are. For others, ${MERGE}`);
  for (const [key, value] of Object.entries(raw)) {
    if (!isSet(value)) continue;
    const refusal = REFUSED[key];
    if (refusal !== undefined) fail(`${key}: ${refusal}`);
    if (key === 'bias' && value !== 'none')
      fail(`bias: '${String(value)}': trained biases are not read; train with bias='none', or ${MERGE}`);
    if (key === 'init_lora_weights' && !PLAIN_STARTS.has(value))
      fail(
        `init_lora_weights: ${JSON.stringify(value)} changes the backbone's weights when it starts; save the adapter with path_initial_model_for_weight_conversion, which makes it a plain one`,
      );
    const isKnown = WITHOUT_EFFECT.has(key) || key === 'bias' || key === 'init_lora_weights';
    if (!isKnown) fail(`${key}: ${JSON.stringify(value)} is not understood; ${MERGE}`);
  }
  const parsed = schema.safeParse(raw);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  return fail(`${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'is malformed'}`);
}

/** The value of the first key of a pattern, a regular expression of Python's, that ends a layer's path; else `fallback`. */
export function patternValue(patterns: PeftConfig['rank_pattern'], path: string, fallback: number): number {
  for (const [key, value] of Object.entries(patterns ?? {})) {
    let expression: RegExp;
    try {
      expression = new RegExp(`^(.*\\.)?(${key})$`);
    } catch (error) {
      throw new RangeError(`the pattern ${JSON.stringify(key)} of adapter_config.json is no regular expression here`, {
        cause: error,
      });
    }
    if (expression.test(path)) return value;
  }
  return fallback;
}

/** Rank and factor of a layer's increment. */
export function scaleOf(config: PeftConfig, path: string): { readonly rank: number; readonly scale: number } {
  const rank = patternValue(config.rank_pattern, path, config.r);
  const alpha = patternValue(
    config.alpha_pattern,
    path,
    config.peft_type === 'LORA' ? config.lora_alpha : config.alpha,
  );
  const isRankStabilized = config.peft_type === 'LORA' && config.use_rslora;
  return { rank, scale: alpha / (isRankStabilized ? Math.sqrt(rank) : rank) };
}
