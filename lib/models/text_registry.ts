/** Text models by name. A new family is one import and one entry of `catalog`. */
import { bart, mbart } from './bart.js';
import { Catalog, parameterCount } from './catalog.js';
import { roberta } from './roberta.js';
import { t5 } from './t5.js';
import type { TextModel } from './text_model.js';

const catalog = new Catalog<TextModel>([t5, bart, mbart, roberta], 'listTextModels()');

/** What is known about a text model without building its weights. */
export interface TextModelInfo {
  readonly name: string;
  readonly family: string;
  readonly paper: string;
  /** Every option with its value for this model. */
  readonly options: Readonly<Record<string, unknown>>;
  readonly classifier: string | null;
  readonly width: number;
  readonly vocabulary: number;
  readonly parameters: number;
}

/**
 * Builds a text model with fresh weights.
 *
 * @param name such as `t5_base` or `roberta_large`; see `listTextModels()`
 * @param options what differs from the published model
 * @throws RangeError for an unknown name (with the nearest ones); TypeError for an unknown or wrong option
 */
export function createTextModel(name: string, options: Readonly<Record<string, unknown>> = {}): TextModel {
  return catalog.create(name, options);
}

/** Builds a member of a family (`t5`, `bart`, `mbart`, `roberta`) that nobody has published, from a full set of options. */
export function createCustomTextModel(
  family: string,
  options: Readonly<Record<string, unknown>>,
  name = family,
): TextModel {
  return catalog.createCustom(family, options, name);
}

/** Names of all text models, or of one family. @throws RangeError for an unknown family */
export function listTextModels(family?: string): string[] {
  return catalog.list(family);
}

/** Facts about a text model; it is built on the meta device, so no memory is used. */
export function textModelInfo(name: string, options: Readonly<Record<string, unknown>> = {}): TextModelInfo {
  const { family, options: resolved, model } = catalog.describe(name, options);
  const { classifier, width, vocabulary } = model;
  const facts = { classifier, width, vocabulary, parameters: parameterCount(model) };
  return { name, family: family.id, paper: family.paper, options: resolved, ...facts };
}
