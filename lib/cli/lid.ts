/** `torchgraft lid`: which submodules of a model need the smallest random subspace, and so should be adapted. */
import { Command, Option } from 'commander';
import type { LocalDimension } from '../train/index.js';
import { addComputeOptions, collect, integer, real, type ComputeOptions } from './arguments.js';
import { DATA_HELP } from './dataset.js';
import { asUsage, count, note, printResult, table, UsageError } from './output.js';
import { addPreprocessOptions, buildTransforms, type PreprocessFlags } from './preprocess.js';

interface LidFlags extends PreprocessFlags, ComputeOptions {
  readonly weights?: string | false;
  readonly data?: string;
  readonly submodule?: string[];
  readonly depth?: number[];
  readonly dims: number[];
  readonly share: number;
  readonly epochs: number;
  readonly probeEpochs: number;
  readonly batchSize: number;
  readonly lr: number;
  readonly seed: number;
  readonly quiet?: boolean;
  readonly json?: boolean;
  readonly device: string;
}

/** What `--json` prints. */
interface LidResult {
  readonly model: string;
  readonly data: string;
  readonly classes: number;
  readonly epochs: number;
  readonly share: number;
  /** Accuracy of the classifier on the untouched backbone, which all trainings start from. */
  readonly probe: number;
  /** Smallest dimension first. */
  readonly submodules: readonly LocalDimension[];
  /** What to adapt; null when no subspace tried was large enough. */
  readonly proposal: Proposal | null;
}

interface Proposal {
  readonly submodule: string;
  readonly method: string;
  readonly options: Readonly<Record<string, unknown>>;
}

/** Commas between whole numbers. */
const integers =
  (least: number) =>
  (text: string): number[] =>
    text.split(',').map(integer(least));

export function lidCommand(): Command {
  const command = new Command('lid')
    .summary('measure which submodules to adapt: their local intrinsic dimension')
    .description(
      'Measure the local intrinsic dimension of submodules on a data set: a linear probe first; then all weights of each ' +
        'kind of submodule are trained, and after that only a few numbers that move them through a fixed random map, more ' +
        'and more, until the score comes near. The submodule that needs the fewest is the one to adapt.',
    )
    .argument('<model>', "a backbone, see 'torchgraft models'")
    .option('--weights <file>', "the backbone's pretrained weights: safetensors or PyTorch")
    .option('--no-weights', 'start from random weights')
    .option('--data <dir>', DATA_HELP)
    .option('--submodule <role>', 'a kind to compare (repeatable; default: attention and mlp)', collect)
    .addOption(new Option('--depth <n,n,...>', 'only in these blocks (default: all)').argParser(integers(0)))
    .addOption(
      new Option('--dims <d,d,...>', 'dimensions to try')
        .argParser(integers(1))
        .default([8, 16, 32, 64, 128, 256, 512, 1024], '8,16,...,1024'),
    )
    .addOption(
      new Option('--share <s>', 'of the full score that counts as reached').argParser(real(0.01, 1)).default(0.9),
    )
    .addOption(new Option('--epochs <n>', 'of every training').argParser(integer(1)).default(5))
    .addOption(new Option('--probe-epochs <n>', 'of the linear probe').argParser(integer(1)).default(5))
    .addOption(new Option('--batch-size <n>').argParser(integer(1)).default(32))
    .addOption(
      new Option('--lr <rate>', 'of full training; subspaces get a fitting one').argParser(real(0)).default(1e-3),
    )
    .addOption(new Option('--seed <n>', 'of maps, order and augmentation').argParser(integer(0)).default(0));
  addPreprocessOptions(command);
  command.optionsGroup('Running:').option('--quiet', 'no progress').option('--json', 'print the result as JSON');
  return addComputeOptions(command)
    .addHelpText(
      'after',
      `
Examples:
  $ torchgraft lid vit_small_patch16_224 --weights vit.safetensors --data photos
  $ torchgraft lid vit_tiny_patch16_224 --no-weights --image-size 32 --data shapes:color:200 --depth 0 --dims 8,32,128 --json`,
    )
    .action(runLid);
}

async function runLid(name: string, flags: LidFlags): Promise<void> {
  const { data, weights, submodule: submodules = ['attention', 'mlp'] } = flags;
  if (data === undefined) throw new UsageError('--data is missing: a folder of images, or shapes:TASK');
  if (weights === undefined)
    throw new UsageError("--weights is missing: the backbone's checkpoint; --no-weights takes random weights");
  const { prepareCompute, openBackbone } = await import('./trained.js');
  const { openTrainingData } = await import('./dataset.js');
  const { DataLoader } = await import('../data/index.js');
  const { modelInfo } = await import('../models/index.js');
  const { manualSeed } = await import('../tensor/index.js');
  const { INTERRUPTED, measureLocalDimension, onInterrupt, Trainer } = await import('../train/index.js');
  const { graft, layersOf } = await import('../adapters/index.js');

  const device = await prepareCompute(flags);
  const size = flags.imageSize === undefined ? {} : { imgSize: flags.imageSize };
  const { config } = asUsage(() => modelInfo(name, size));
  const images = await openTrainingData(data);
  const { classNames } = images;
  manualSeed(flags.seed);
  const model = await openBackbone(name, weights === false ? null : weights, {
    classes: classNames.length,
    ...(flags.imageSize !== undefined && { imageSize: flags.imageSize }),
  });
  model.to({ device });
  const depth = flags.depth;
  for (const submodule of submodules) {
    const found = layersOf(model.sites(), { submodule, ...(depth && { depth }) });
    if (found.length > 0) continue;
    const where = depth ? ` at depth ${depth.join(', ')}` : '';
    throw new UsageError(
      `${name} has no module of the role '${submodule}' with layers in it${where}; 'torchgraft sites ${name}' lists what it has`,
    );
  }
  const steps = buildTransforms(config, flags);
  const common = { batchSize: flags.batchSize, seed: flags.seed };
  const train = new DataLoader({ ...common, dataset: images.train, shuffle: true, transform: steps.train });
  const val = new DataLoader({ ...common, dataset: images.val, transform: steps.evaluate });
  const say = flags.quiet === true ? (): void => undefined : note;
  using interrupt = onInterrupt();
  const { signal } = interrupt;
  const stop = (): void => {
    note('interrupted; nothing was written');
    process.exitCode = INTERRUPTED;
  };

  const probe = graft(model, 'linear_probe', {}, { name: 'probe', seed: flags.seed });
  const fit = await new Trainer({
    ...{ model, adapter: probe, train, val, epochs: flags.probeEpochs, seed: flags.seed, signal },
    optimizer: { kind: 'adamw', lr: 0.01 },
    backboneMode: 'eval',
  }).fit();
  if (fit.interrupted) {
    stop();
    return;
  }
  const score = fit.history.at(-1)?.val?.accuracy ?? 0;
  say(`linear probe: ${percent(score)}`);
  const own = [...model.stateDict()].filter(([key]) => model.isInClassifier(key));
  const classifier = new Map(own.map(([key, value]) => [key, value.clone()]));
  probe.remove();
  model.loadStateDict(classifier, { strict: false });

  const measured = await measureLocalDimension({
    ...{ model, train, val, submodules, signal },
    ...{ dimensions: flags.dims, share: flags.share, epochs: flags.epochs, lr: flags.lr, seed: flags.seed },
    ...(depth && { depth }),
    onRun: ({ submodule, dimension, accuracy }) => {
      say(
        `${submodule}, ${dimension === null ? 'all weights' : `${count(dimension)} dimensions`}: ${percent(accuracy)}`,
      );
    },
  });
  if (measured === null) {
    stop();
    return;
  }
  const [best] = measured;
  const result: LidResult = {
    ...{ model: name, data, classes: classNames.length, epochs: flags.epochs, share: flags.share, probe: score },
    submodules: measured,
    proposal: best && best.dimension !== null ? propose(best) : null,
  };
  printResult(flags.json, result, () => describe(result));
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

/** Attention is what Kronecker adaptation was made for; the layers of anything else are given to LoRA. */
function propose({ submodule, layers }: LocalDimension): Proposal {
  if (submodule === 'attention') return { submodule, method: 'kadaptation', options: {} };
  const path = [...new Set(layers.map((layer) => layer.replace(/(^|\.)\d+(?=\.|$)/g, '$1*')))];
  return { submodule, method: 'lora', options: { at: { path } } };
}

function describe({ model, data, share, probe, submodules, proposal }: LidResult): string {
  const rows = submodules.map(({ submodule, size, full, target, dimension, runs }) => [
    submodule,
    count(size),
    percent(full),
    percent(target),
    dimension === null ? `> ${count(runs.at(-1)?.dimension ?? 0)}` : count(dimension),
  ]);
  const head = ['submodule', 'numbers', 'all trained', 'to reach', `d${Math.round(100 * share)}`];
  const advice =
    proposal === null
      ? 'No subspace tried was large enough: give larger --dims, or more --epochs.'
      : `Adapt the ${proposal.submodule}:\n  torchgraft finetune ${model} --data ${data} --method ${proposal.method}` +
        Object.entries(proposal.options)
          .map(([key, value]) => ` --set '${key}=${JSON.stringify(value)}'`)
          .join('');
  const easy = submodules.filter(({ target }) => probe >= target).map(({ submodule }) => submodule);
  const warning =
    easy.length === 0
      ? ''
      : `The linear probe alone (${percent(probe)}) reaches what is asked of ${easy.join(' and ')}: this tells nothing about ` +
        'them. Harder data, more --epochs or a larger --share would.\n\n';
  return `${table(head, rows)}\n\n${warning}${advice}`;
}
