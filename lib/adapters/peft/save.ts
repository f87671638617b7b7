/** LoRA and LoKr adapters as folders that the package peft loads. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { writeAtomically, writeSafetensors } from '../../checkpoint/index.js';
import { exportState, layerPieces, type NameFormat, nameFormats } from '../../models/index.js';
import { modulePath } from '../../nn/index.js';
import { keep, noGrad, scope, type Tensor } from '../../tensor/index.js';
import type { Adapter, Graft, SaveOptions } from '../core/index.js';
import { ownFingerprint } from '../core/fingerprint.js';
import { CONFIG_FILE, TENSORS_FILE } from '../core/folder.js';
import { loraLayer, lokrLayer, type PeftLayer } from './layers.js';

/** What goes into the folder. */
export interface SavePeftOptions extends SaveOptions {
  /** Whose modules the adapter is for. Default: timm's, where it has the model, else transformers', else our own. */
  readonly names?: NameFormat;
}

/** What stands before every name in peft's files. */
export const PREFIX = 'base_model.model.';

/** Key of our own remarks in the header of the tensors' file. */
export const REMARKS = 'torchgraft';

/** What only we read: it makes `loadPeft` as strict as `loadAdapter`. */
export interface PeftRemarks {
  readonly backbone: {
    readonly name: string;
    readonly options?: Readonly<Record<string, unknown>>;
    readonly fingerprint: string;
  };
  readonly classNames: readonly string[] | null;
  readonly preprocessing: unknown;
}

/**
 * Writes a `lora` or `lokr` adapter as a folder that peft loads beside a model of timm or transformers with the same
 * weights: `PeftModel.from_pretrained(model, folder)`. Slices of fused projections become one pair of factors of the
 * whole projection, quantized factors plain ones, the head a saved module; the function is the same. A model for a head
 * of another number of classes must be made with that number (`timm.create_model(name, num_classes=10)`).
 *
 * @throws RangeError for another method, and for what peft has no place for: LoKr on a part of a layer, grouped
 *   convolutions with LoKr, dilated convolutions, running statistics that moved, a head that is no linear layer
 * @example
 * savePeft(adapter, 'for-python');
 */
export function savePeft(adapter: Adapter, path: string, options: SavePeftOptions = {}): void {
  const { model, method } = adapter;
  if (method.id !== 'lora' && method.id !== 'lokr') {
    throw new RangeError(
      `peft has no method like '${method.id}'; lora and lokr can be saved for it. Save the folder with adapter.save(), which scripts/interop/adapters.py reads, or merge`,
    );
  }
  if (adapter.isMerged) throw new Error(`adapter '${adapter.name}' is merged; call unmerge() before saving it`);
  const known = nameFormats(model);
  const names = options.names ?? (['timm', 'transformers'] as const).find((format) => known.includes(format)) ?? 'own';
  checkStatistics(adapter);
  const isLora = method.id === 'lora';
  const layers = new Map<string, PeftLayer>();
  const tensors = new Map<string, Tensor>();
  const pieces = layerPieces(model, names);
  noGrad(() => {
    scope(() => {
      for (const [foreign, layer] of adaptedLayers(adapter, pieces, isLora ? loraLayer : lokrLayer)) {
        layers.set(foreign, layer);
        for (const [name, tensor] of layer.tensors) tensors.set(`${PREFIX}${foreign}.${name}`, keep(tensor));
      }
      for (const [name, tensor] of headState(adapter, names)) tensors.set(PREFIX + name, keep(tensor.contiguous()));
    });
  });
  const saved = [...tensors.keys()].filter((name) => !/\.(lora_[AB]\.weight|lokr_\w+)$/.test(name));
  const config = {
    peft_type: isLora ? 'LORA' : 'LOKR',
    task_type: null,
    base_model_name_or_path: null,
    inference_mode: true,
    target_modules: targets(
      [...layers.keys()],
      pieces.map(({ foreign }) => foreign),
    ),
    modules_to_save:
      saved.length > 0 ? [...new Set(saved.map((name) => name.slice(PREFIX.length, name.lastIndexOf('.'))))] : null,
    ...(isLora ? loraConfig(adapter, layers) : lokrConfig(adapter)),
  };
  const remarks: PeftRemarks = {
    backbone: { name: model.name, options: model.options, fingerprint: ownFingerprint(model) },
    classNames: options.classNames ?? null,
    preprocessing: options.preprocessing ?? null,
  };
  mkdirSync(path, { recursive: true });
  writeSafetensors(join(path, TENSORS_FILE), tensors, { format: 'pt', [REMARKS]: JSON.stringify(remarks) });
  writeAtomically(join(path, CONFIG_FILE), (sink) => {
    sink.write(Buffer.from(`${JSON.stringify(config, null, 2)}\n`));
  });
  for (const tensor of tensors.values()) tensor.dispose();
}

function* adaptedLayers(
  adapter: Adapter,
  pieces: ReturnType<typeof layerPieces>,
  convert: typeof loraLayer,
): Generator<[string, PeftLayer]> {
  const byModule = new Map<string, Graft[]>();
  for (const graft of adapter.grafts) {
    if (graft.rule === 'head') continue;
    const path = modulePath(graft.site);
    byModule.set(path, [...(byModule.get(path) ?? []), graft]);
  }
  for (const [path, grafts] of byModule) {
    const own = pieces.filter((piece) => piece.path === path);
    if (own.length === 0)
      throw new RangeError(`${path} is no layer in the other library's ${adapter.model.name}; leave it out`);
    for (const piece of own) {
      const layer = convert(grafts, piece);
      if (layer) yield [piece.foreign, layer];
    }
  }
}

function checkStatistics(adapter: Adapter): void {
  const moved = adapter.overlays.find((overlay) => {
    const isClassifier = adapter.model.isInClassifier(overlay.name);
    return !isClassifier && (overlay.trains || !adapter.valueOf(overlay).equal(adapter.originalOf(overlay)));
  });
  if (moved) {
    throw new RangeError(
      `peft has no place for ${moved.name}, which training changed beside the increments; train with bnStats 'frozen'`,
    );
  }
}

/** The trained classifier under the other library's names; nothing where it stays as it is. */
function headState(adapter: Adapter, names: NameFormat): Map<string, Tensor> {
  const { model, headModule } = adapter;
  const state = new Map<string, Tensor>();
  if (headModule && model.classifier !== null) {
    if (headModule.obstacle !== null)
      throw new RangeError(`peft saves whole modules, and ${headModule.obstacle}; leave that option out`);
    const { linear } = headModule;
    const own = { weight: linear.effectiveWeight(), bias: linear.bias };
    const { weight, bias } = headModule.norm ? headModule.asLinear() : own;
    state.set(`${model.classifier}.weight`, weight.detach().to('float32'));
    if (bias) state.set(`${model.classifier}.bias`, bias.detach().to('float32'));
  }
  for (const overlay of adapter.overlays)
    if (overlay.trains) state.set(overlay.name, adapter.valueOf(overlay).detach());
  return exportState(model, names, state);
}

/** Paths, or an expression where a path is also the end of another layer's, which peft would adapt too. */
function targets(paths: readonly string[], all: readonly string[]): string | string[] {
  const wanted = new Set(paths);
  const isAmbiguous = all.some((other) => !wanted.has(other) && paths.some((path) => other.endsWith(`.${path}`)));
  return isAmbiguous ? `(${paths.map(escaped).join('|')})` : [...paths];
}

const escaped = (path: string): string => path.replaceAll('.', '\\.');

/** The value of most, and the others by path. */
function withPatterns(values: ReadonlyMap<string, number>): { most: number; pattern: Record<string, number> } {
  const counts = new Map<number, number>();
  for (const value of values.values()) counts.set(value, (counts.get(value) ?? 0) + 1);
  const [most = 1] = [...counts].sort((a, b) => b[1] - a[1]).map(([value]) => value);
  const others = [...values].filter(([, value]) => value !== most);
  return { most, pattern: Object.fromEntries(others.map(([path, value]) => [`^${escaped(path)}`, value])) };
}

function loraConfig({ options }: Adapter, layers: ReadonlyMap<string, PeftLayer>): object {
  const ranks = withPatterns(new Map([...layers].map(([path, { rank }]) => [path, rank])));
  const alphas = withPatterns(new Map([...layers].map(([path, { rank, scale }]) => [path, scale * rank])));
  return {
    r: ranks.most,
    rank_pattern: ranks.pattern,
    lora_alpha: alphas.most,
    alpha_pattern: alphas.pattern,
    lora_dropout: options['dropoutAt'] === 'rank' ? 0 : options['dropout'],
    bias: 'none',
    fan_in_fan_out: false,
    use_rslora: false,
    init_lora_weights: true,
  };
}

function lokrConfig({ options, grafts }: Adapter): object {
  if (Array.isArray(options['also']) && options['also'].length > 0)
    throw new RangeError(
      "lokr: layers with ranks of their own ('also') are not written for peft; make an adapter of one rank",
    );
  const delta = grafts.find(({ composition }) => composition.kind === 'delta')?.composition;
  const rank = Number(options['rank']);
  return {
    r: rank,
    alpha: (delta?.kind === 'delta' ? delta.scale : 1) * rank,
    rank_pattern: {},
    alpha_pattern: {},
    decompose_both: options['decomposeBoth'],
    decompose_factor: options['decomposeFactor'],
    use_effective_conv2d: options['effectiveConv'],
    rank_dropout: 0,
    module_dropout: 0,
    rank_dropout_scale: false,
    init_weights: true,
  };
}
