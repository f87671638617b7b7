/** `torchgraft convert`: weights between files and names, adapters to and from the package peft. */
import { Command, InvalidArgumentError, Option } from 'commander';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Host, NameFormat } from '../models/index.js';
import type { Tensor } from '../tensor/index.js';
import { collect, existingFile, namesOption, parseSettings } from './arguments.js';
import { count, note, printResult, UsageError } from './output.js';
import { openTrained } from './trained.js';

type FileFormat = 'safetensors' | 'torch' | 'npz';
type OutputFormat = FileFormat | 'peft' | 'adapter';

interface ConvertFlags {
  readonly out: string;
  readonly model?: string;
  readonly set?: string[];
  readonly names?: NameFormat;
  readonly format?: OutputFormat;
  readonly weights?: string;
  readonly key?: string;
  readonly maxShardSize?: number;
  readonly json?: boolean;
}

interface Converted {
  readonly out: string;
  readonly format: OutputFormat;
  readonly tensors: number;
  readonly bytes: number;
  /** What the input held beside weights. */
  readonly leftOut: readonly string[];
}

const UNITS: Readonly<Record<string, number>> = { KB: 1e3, MB: 1e6, GB: 1e9 };

function size(text: string): number {
  const [, digits = '', unit = ''] = /^(\d+(?:\.\d+)?)\s*([KMG]B)$/i.exec(text) ?? [];
  const value = Number(digits) * (UNITS[unit.toUpperCase()] ?? 0);
  if (!(value > 0)) throw new InvalidArgumentError('expected a size such as 500MB or 5GB.');
  return value;
}

export function convertCommand(): Command {
  return new Command('convert')
    .summary('weights between files and names; adapters to and from peft')
    .description(
      'Write the weights of a file in another container, and with --model under other names: safetensors, PyTorch files ' +
        "(torch.load(..., weights_only=True) reads them), NumPy archives; timm's, official and transformers' names, Google's " +
        "archives of vision transformers. Of an adapter folder: to peft's form (--format peft), or from it.",
    )
    .argument('<input>', 'a file of weights, an index of shards (.index.json), or an adapter folder')
    .requiredOption('--out <path>', 'what to write: a file, or a folder for adapters')
    .option('--model <name>', "the model, for another library's names and for adapters of peft")
    .option('--set <key=value>', 'options of the model, such as imgSize=384 (repeatable)', collect)
    .addOption(namesOption().default(undefined, 'as they are; with --model: own'))
    .addOption(
      new Option(
        '--format <name>',
        "default: by the output's ending (.pt, .pth, .bin, .npz, else safetensors)",
      ).choices([...['safetensors', 'torch', 'npz', 'peft', 'adapter']]),
    )
    .option('--weights <file>', "the backbone's weights, for adapters")
    .option('--key <name>', 'where the weights are in the file, such as model_ema')
    .addOption(
      new Option('--max-shard-size <size>', 'write safetensors in several files with an index').argParser(size),
    )
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      `
Examples:
  $ torchgraft convert resnet50.pth --out resnet50.safetensors
  $ torchgraft convert model.safetensors.index.json --out model.pt
  $ torchgraft convert ViT-B_16.npz --model vit_base_patch16_224 --out vit.safetensors
  $ torchgraft convert swin_tiny.pth --model swin_tiny_patch4_window7_224 --names transformers --out swin.safetensors
  $ torchgraft convert runs/signs/adapter --weights vit.safetensors --format peft --out for-python
  $ torchgraft convert from-python --model vit_small_patch16_224 --weights vit.safetensors --out adapter`,
    )
    .action(async (input: string, flags: ConvertFlags) => {
      if (!existsSync(input)) throw new UsageError(`there is no file or folder ${input}`);
      const isFolder = statSync(input).isDirectory();
      const result = isFolder ? await convertAdapter(input, flags) : await convertWeights(input, flags);
      printResult(flags.json, result, () => describe(result));
    });
}

function describe({ out, format, tensors, bytes, leftOut }: Converted): string {
  const lines = [`wrote ${out} (${format}): ${count(tensors)} tensors, ${(bytes / 1e6).toFixed(1)} MB`];
  if (leftOut.length > 0) lines.push(`left out, because it is no weight: ${leftOut.join(', ')}`);
  return lines.join('\n');
}

function formatOf({ out, format, maxShardSize }: ConvertFlags): FileFormat {
  const byEnding = /\.(pt|pth|bin|th)$/.test(out) ? 'torch' : out.endsWith('.npz') ? 'npz' : 'safetensors';
  const chosen = format ?? byEnding;
  if (chosen === 'peft' || chosen === 'adapter')
    throw new UsageError(
      `--format ${chosen} is for adapter folders; a file of weights becomes safetensors, torch or npz`,
    );
  if (maxShardSize !== undefined && chosen !== 'safetensors')
    throw new UsageError('--max-shard-size is for safetensors only');
  return chosen;
}

async function convertWeights(input: string, flags: ConvertFlags): Promise<Converted> {
  const { byteLength, readCheckpoint, stateDictOf, writeNpz, writeSharded, writeTorchFile } =
    await import('../checkpoint/index.js');
  const format = formatOf(flags);
  if (flags.weights !== undefined) throw new UsageError('--weights is for adapter folders');
  const found = stateDictOf(readCheckpoint(input), flags.key === undefined ? {} : { key: flags.key });
  const state = await renamed(found, input, flags);
  let out = flags.out;
  if (format === 'torch') writeTorchFile(out, state);
  else if (format === 'npz') writeNpz(out, state);
  else {
    const maxShardBytes = flags.maxShardSize ?? Number.MAX_SAFE_INTEGER;
    out = writeSharded(out, state, { maxShardBytes, metadata: { format: 'pt' } });
  }
  const bytes = [...state.values()].reduce((sum, tensor) => sum + byteLength(tensor), 0);
  return { out, format, tensors: state.size, bytes, leftOut: [...found.scalars.keys(), ...found.ignored] };
}

async function renamed(
  state: ReadonlyMap<string, Tensor>,
  input: string,
  { model: name, names = 'own', set = [], ...flags }: ConvertFlags,
): Promise<ReadonlyMap<string, Tensor>> {
  if (name === undefined) {
    if (names !== 'own') throw new UsageError(`--names ${names} needs --model, the model that the weights are of`);
    if (set.length > 0) throw new UsageError('--set gives options of the model; name it with --model');
    return state;
  }
  const { exportState, importState } = await import('../models/index.js');
  const { compareState, describeReport } = await import('../nn/index.js');
  const model = await describeModel(name, parseSettings(set));
  const own = importState(model, state);
  // The classifier may have any number of classes, or be missing.
  const body = new Map([...own].filter(([key]) => !model.isInClassifier(key)));
  const expected = model.namedState().filter(([key]) => !model.isInClassifier(key));
  const report = compareState(expected, body);
  const problems = describeReport(report);
  if (problems !== '') throw new UsageError(`${input} does not hold the weights of ${name}:${problems}`);
  for (const [key, tensor] of own) {
    const before = state.get(key);
    if (before && before.shape.join() !== tensor.shape.join())
      note(
        `${key} was resampled from [${before.shape.join(', ')}] to [${tensor.shape.join(', ')}]; --set imgSize=N keeps it`,
      );
  }
  if (flags.format === 'npz' && names !== 'official')
    note("a .npz archive in Google's own form is written with --names official");
  return exportState(model, names, own);
}

/** The model without memory: only its names and shapes are needed. */
async function describeModel(name: string, options: Record<string, unknown>): Promise<Host> {
  const { createClip, createModel, createTextModel, listClips, listTextModels } = await import('../models/index.js');
  const { withDefaults } = await import('../tensor/index.js');
  return withDefaults({ device: 'meta' }, () => {
    if (listClips().includes(name)) return createClip(name, options);
    if (listTextModels().includes(name)) return createTextModel(name, options);
    return createModel(name, options);
  });
}

async function convertAdapter(input: string, flags: ConvertFlags): Promise<Converted> {
  const file = join(input, 'adapter_config.json');
  if (!existsSync(file)) throw new UsageError(`${input} is no adapter folder: it has no adapter_config.json`);
  const { format } = JSON.parse(readFileSync(file, 'utf8')) as { readonly format?: unknown };
  if (flags.weights !== undefined) existingFile(flags.weights, '--weights');
  const isOwn = format === 'torchgraft';
  const wanted = flags.format ?? (isOwn ? 'peft' : 'adapter');
  if (wanted !== (isOwn ? 'peft' : 'adapter'))
    throw new UsageError(
      `${input} is an adapter of ${isOwn ? 'torchgraft' : 'peft'} and becomes --format ${isOwn ? 'peft' : 'adapter'}, not ${wanted}`,
    );
  const adapter = isOwn ? await toPeft(input, flags) : await fromPeft(input, flags);
  const { byteLength } = await import('../checkpoint/index.js');
  const parameters = adapter.parameters();
  const bytes = parameters.reduce((sum, tensor) => sum + byteLength(tensor), 0);
  return { out: flags.out, format: wanted, tensors: parameters.length, bytes, leftOut: [] };
}

async function toPeft(input: string, { out, weights, names }: ConvertFlags) {
  const { savePeft } = await import('../adapters/index.js');
  const { adapter, classNames, transforms } = await openTrained(input, weights, 'cpu');
  if (adapter === null) throw new UsageError(`${input} holds no adapter`);
  savePeft(adapter, out, { classNames, preprocessing: transforms, ...(names && { names }) });
  return adapter;
}

async function fromPeft(input: string, { out, model: name, weights, set = [], names }: ConvertFlags) {
  const { loadPeft, readPeft } = await import('../adapters/index.js');
  const { createModel, createTextModel, listTextModels, loadWeights } = await import('../models/index.js');
  const read = readPeft(input);
  const model = name ?? read.remarks?.backbone.name;
  if (model === undefined || weights === undefined)
    throw new UsageError(
      `an adapter of peft needs --model NAME and --weights FILE, the model that it was trained beside`,
    );
  const options = { ...read.remarks?.backbone.options, ...parseSettings(set) };
  const host = listTextModels().includes(model) ? createTextModel(model, options) : createModel(model, options);
  loadWeights(host, weights, { classifier: 'drop' });
  const adapter = loadPeft(host, read, names ? { names } : {});
  const { classNames = null, preprocessing = null } = read.remarks ?? {};
  adapter.save(out, { ...(classNames && { classNames }), ...(preprocessing !== null && { preprocessing }) });
  return adapter;
}
