/** Adapter folders of the package peft, set into our models. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { CheckpointError, readCheckpoint, stateDictOf } from '../../checkpoint/index.js';
import {
  type Host,
  fromModuleNames,
  layerPieces,
  type LayerPiece,
  type NameFormat,
  nameFormats,
  suggestion,
} from '../../models/index.js';
import { modulePath, type Site } from '../../nn/index.js';
import { noGrad, scope, type Tensor } from '../../tensor/index.js';
import { type Adapter, graftMethod, type LoadAdapterOptions } from '../core/index.js';
import { TENSORS_FILE } from '../core/folder.js';
import { checkBackbone, filled } from '../core/load.js';
import { lokr } from '../krona.js';
import { lora } from '../lora.js';
import { type PeftConfig, readPeftConfig, scaleOf } from './config.js';
import { fillForm, formRank } from './layers.js';
import { type PeftRemarks, PREFIX, REMARKS } from './save.js';

/** What a folder of peft holds. */
export interface PeftFolder {
  readonly path: string;
  readonly config: PeftConfig;
  /** By the path of a layer: its tensors by name, such as `lora_A.weight`. */
  readonly layers: ReadonlyMap<string, ReadonlyMap<string, Tensor>>;
  /** Tensors of the modules that were saved whole, by name. */
  readonly saved: ReadonlyMap<string, Tensor>;
  /** What `savePeft` left; null in folders that peft wrote. */
  readonly remarks: PeftRemarks | null;
}

/** How `loadPeft` treats what it finds. */
export interface LoadPeftOptions extends LoadAdapterOptions {
  /** Whose modules the adapter is for. Default: found by the names. */
  readonly names?: NameFormat;
}

const FACTOR = /^(.+)\.(lora_[AB]|lokr_\w+)(?:\.default)?(\.weight)?$/;

/**
 * Reads a folder of peft without a model.
 *
 * @throws RangeError that names a setting or a tensor that is not understood, and what would be; CheckpointError for a
 *   damaged file
 */
export function readPeft(path: string): PeftFolder {
  const config = readPeftConfig(path);
  const file = [TENSORS_FILE, 'adapter_model.bin'].map((name) => join(path, name)).find((name) => existsSync(name));
  if (file === undefined)
    throw new CheckpointError(join(path, TENSORS_FILE), 'there is no such file, and no adapter_model.bin');
  const checkpoint = readCheckpoint(file);
  const layers = new Map<string, Map<string, Tensor>>();
  const saved = new Map<string, Tensor>();
  for (const [full, tensor] of stateDictOf(checkpoint)) {
    if (!full.startsWith(PREFIX))
      throw new RangeError(`${file}: '${full}' does not begin with ${PREFIX}, as all names of peft do`);
    const name = full.slice(PREFIX.length);
    const [, layer, factor, leaf = ''] = FACTOR.exec(name) ?? [];
    if (layer !== undefined && factor !== undefined) {
      const tensors = layers.get(layer) ?? new Map<string, Tensor>();
      layers.set(layer, tensors.set(factor + leaf, tensor));
    } else if (/\.(lora|lokr)_/.test(name)) {
      const what = /\.lora_embedding_/.test(name)
        ? 'adapts an embedding; target linear layers and convolutions only'
        : 'is no factor that is understood';
      throw new RangeError(`${file}: '${name}' ${what}`);
    } else {
      saved.set(name.replace(/\.modules_to_save(\.default)?(?=\.)/, ''), tensor);
    }
  }
  if (layers.size === 0) throw new RangeError(`${file}: holds no factors of ${config.peft_type}`);
  const remarks = checkpoint.metadata[REMARKS];
  return { path, config, layers, saved, remarks: remarks === undefined ? null : (JSON.parse(remarks) as PeftRemarks) };
}

/**
 * Sets a LoRA or LoKr adapter that peft saved for a model of timm or transformers into our model, which must hold the
 * same weights. Classifiers among `modules_to_save` become the adapter's head; without one the model's own stays.
 *
 * @param folder path, or what `readPeft` returned
 * @throws RangeError for settings that change what an adapter computes and are not known here (DoRA, trained biases, ...),
 *   layers that the model does not have, and modules saved whole other than the classifier; nothing has changed then
 * @example
 * const model = createModel('vit_small_patch16_224');
 * loadWeights(model, 'vit_small.safetensors');
 * const adapter = loadPeft(model, 'from-python');
 */
export function loadPeft(model: Host, folder: string | PeftFolder, options: LoadPeftOptions = {}): Adapter {
  const read = typeof folder === 'string' ? readPeft(folder) : folder;
  const { config, layers, remarks } = read;
  if (remarks) checkBackbone(model, remarks.backbone, read.path, options.fingerprint ?? 'error');
  const names = options.names ?? formatOf(model, read);
  const places = new Map([...layers.keys()].map((layer) => [layer, siteOf(model, names, layer, read)] as const));
  const head = headOf(model, names, read);
  const settings = {
    name: options.name ?? 'default',
    head: head ? { classes: head.weight.shape[0] ?? 0 } : 'frozen',
    activate: 'no',
  } as const;
  const method = methodOptions(read, places);
  const adapter =
    config.peft_type === 'LORA'
      ? graftMethod(model, lora, method, settings)
      : graftMethod(model, lokr, method, settings);
  return filled(adapter, options.activate ?? 'only', () => {
    const byPath = new Map([...places].map(([layer, site]) => [site.path, layer]));
    for (const graft of adapter.grafts) {
      const layer = byPath.get(graft.site.path);
      const tensors = layer === undefined ? undefined : layers.get(layer);
      if (layer !== undefined && tensors) fillForm(graft, tensors, layer);
    }
    if (head) setHead(adapter, head);
  });
}

/** The format in which the model has all the folder's layers. */
function formatOf(model: Host, { layers, path }: PeftFolder): NameFormat {
  const formats = nameFormats(model);
  let closest: { readonly missing: string; readonly known: readonly LayerPiece[]; readonly count: number } | null =
    null;
  for (const format of formats) {
    const pieces = layerPieces(model, format);
    const known = new Set(pieces.map(({ foreign }) => foreign));
    const missing = [...layers.keys()].filter((layer) => !known.has(layer));
    if (missing.length === 0) return format;
    if (!closest || missing.length < closest.count)
      closest = { missing: missing[0] ?? '', known: pieces, count: missing.length };
  }
  const { missing = '', known = [] } = closest ?? {};
  throw new RangeError(
    `the adapter in ${path} is for another model than ${model.name}: it adapts '${missing}'` +
      `${suggestion(
        missing,
        known.map(({ foreign }) => foreign),
      )}; names of ${formats.join(', ')} were tried`,
  );
}

function siteOf(model: Host, names: NameFormat, layer: string, { path }: PeftFolder): Site {
  const piece = layerPieces(model, names).find(({ foreign }) => foreign === layer);
  const found = piece && findSite(model, piece);
  if (found) return found;
  throw new RangeError(
    `the adapter in ${path} adapts '${layer}', ${piece ? `which ${model.name} publishes no site for` : `which ${model.name} does not have`}`,
  );
}

function findSite(model: Host, piece: LayerPiece): Site | undefined {
  return model.sites().find((site) => {
    const { slice, out } = site;
    if (modulePath(site) !== piece.path) return false;
    return slice
      ? slice.start === piece.start && slice.length === piece.length
      : piece.start === 0 && piece.length === out;
  });
}

/** Options of `lora` or `lokr` that put forms of the right rank and scale at the sites. */
function methodOptions(
  { config, layers, path: folder }: PeftFolder,
  places: ReadonlyMap<string, Site>,
): Record<string, unknown> {
  const groups = new Map<string, { rank: number; alpha: number; paths: string[] }>();
  for (const [layer, { path, module }] of places) {
    const { rank: total, scale } = scaleOf(config, layer);
    const given = layers.get(layer)?.get('lora_A.weight')?.shape[0];
    if (given !== undefined && given !== total)
      throw new RangeError(
        `${folder}: ${layer} has rank ${given}, and adapter_config.json says ${total}; the files do not belong together`,
      );
    const rank = config.peft_type === 'LORA' ? formRank(module, total) : total;
    const key = `${rank} ${scale}`;
    const group = groups.get(key) ?? { rank, alpha: scale * rank, paths: [] };
    group.paths.push(path);
    groups.set(key, group);
  }
  const [first, ...rest] = [...groups.values()].map(({ rank, alpha, paths }) => ({ rank, alpha, at: { path: paths } }));
  const own =
    config.peft_type === 'LORA'
      ? { dropout: config.lora_dropout }
      : {
          decomposeBoth: config.decompose_both,
          decomposeFactor: config.decompose_factor,
          effectiveConv: config.use_effective_conv2d,
        };
  return { ...first, ...own, ...(rest.length > 0 && { also: rest }) };
}

interface HeadTensors {
  readonly weight: Tensor;
  readonly bias: Tensor | null;
}

/** The classifier among the modules saved whole, or null when none was. */
function headOf(model: Host, names: NameFormat, { saved, path }: PeftFolder): HeadTensors | null {
  if (saved.size === 0) return null;
  const own = fromModuleNames(model, names, saved);
  const other = [...own.keys()].find((name) => !model.isInClassifier(name));
  if (other !== undefined)
    throw new RangeError(
      `the adapter in ${path} holds the whole module of '${other}'; of modules_to_save only the classifier${model.classifier === null ? '' : ` ('${model.classifier}')`} is read`,
    );
  const weight = own.get(`${model.classifier ?? ''}.weight`);
  if (weight?.ndim !== 2) throw new RangeError(`the adapter in ${path} has a classifier that is no linear layer`);
  return { weight, bias: own.get(`${model.classifier ?? ''}.bias`) ?? null };
}

function setHead({ headModule }: Adapter, { weight, bias }: HeadTensors): void {
  const linear = headModule?.linear;
  if (!linear || !headModule) return;
  if (linear.weight.shape.join() !== weight.shape.join())
    throw new RangeError(
      `the classifier is [${weight.shape.join(', ')}], and the model's features ask for [${linear.weight.shape.join(', ')}]`,
    );
  noGrad(() => {
    scope(() => {
      linear.weight.copy_(weight);
      if (bias) linear.bias?.copy_(bias);
      else linear.bias?.zero_();
    });
  });
  headModule.markTrained();
}
