/** `torchgraft evaluate`: accuracy, per class and as a confusion matrix. */
import { Command, Option } from 'commander';
import type { Evaluation } from '../train/index.js';
import { addComputeOptions, integer, real, type ComputeOptions } from './arguments.js';
import { openClassifier, prepareCompute } from './classifier.js';
import { openLabeled } from './dataset.js';
import { count, note, printResult, table } from './output.js';

interface EvaluateFlags extends ComputeOptions {
  readonly weights?: string;
  readonly data: string;
  readonly split?: string;
  readonly valFraction: number;
  readonly splitSeed: number;
  readonly batchSize: number;
  readonly skipBroken?: boolean;
  readonly json?: boolean;
}

export function evaluateCommand(): Command {
  const command = new Command('evaluate')
    .summary('accuracy, per class, confusion matrix')
    .description(
      'Score an adapter folder, or a merged checkpoint, on labeled images: accuracy, per class, confusion matrix.',
    )
    .argument('<target>', "adapter folder, or a file written by 'torchgraft merge'")
    .option('--weights <file>', "the backbone's weights (not for merged checkpoints)")
    .requiredOption('--data <dir>', 'folder with a folder per class; with --split, as given to finetune')
    .addOption(
      new Option('--split <part>', 'score one part of the data given to finetune').choices(['train', 'val', 'test']),
    )
    .addOption(new Option('--val-fraction <share>', 'as given to finetune').argParser(real(0, 1)).default(0.2))
    .addOption(new Option('--split-seed <n>', 'as given to finetune').argParser(integer(0)).default(0))
    .addOption(new Option('--batch-size <n>', 'images at a time').argParser(integer(1)).default(64))
    .option('--skip-broken', 'leave out images that cannot be decoded')
    .option('--json', 'print JSON');
  return addComputeOptions(command)
    .addHelpText(
      'after',
      `
Examples:
  $ torchgraft evaluate runs/signs/adapter --weights resnet20.th --data photos/val
  $ torchgraft evaluate runs/signs/adapter --weights resnet20.th --data photos --split val --json
  $ torchgraft evaluate merged.safetensors --data photos/test`,
    )
    .action(runEvaluate);
}

async function runEvaluate(target: string, flags: EvaluateFlags): Promise<void> {
  const device = await prepareCompute(flags);
  const { DataLoader } = await import('../data/index.js');
  const { evaluate } = await import('../train/index.js');
  const { model, classNames, transforms } = await openClassifier(target, flags.weights, device);
  const dataset = await openLabeled(flags.data, {
    classNames,
    ...(flags.split === undefined ? {} : { split: flags.split }),
    valFraction: flags.valFraction,
    seed: flags.splitSeed,
  });
  const loader = new DataLoader({
    dataset,
    batchSize: flags.batchSize,
    transform: transforms,
    cacheBytes: 0,
    skipBroken: flags.skipBroken === true,
  });
  const result = await evaluate(model, loader);
  if (loader.skipped.length > 0)
    note(`left out ${loader.skipped.length} broken images: ${loader.skipped.map((s) => s.path).join(', ')}`);
  const perClass = await classScores(result, classNames);
  const { accuracy, loss, samples, correct, confusion } = result;
  const data = {
    target,
    accuracy,
    loss,
    samples,
    correct,
    skipped: loader.skipped.length,
    perClass,
    classNames,
    confusion,
  };
  printResult(flags.json, data, () => describe(result, perClass, classNames));
}

interface ClassScore {
  readonly name: string;
  readonly samples: number;
  readonly recall: number | null;
  readonly precision: number | null;
}

/** Recall and precision of each class; null where there is nothing to divide by. */
async function classScores({ confusion }: Evaluation, classNames: readonly string[]): Promise<ClassScore[]> {
  const { perClassAccuracy } = await import('../metrics/index.js');
  const recall = perClassAccuracy(confusion);
  const precision = perClassAccuracy(confusion.map((_, p) => confusion.map((row) => row[p]!)));
  return classNames.map((name, c) => {
    const samples = confusion[c]!.reduce((a, b) => a + b, 0);
    return { name, samples, recall: recall[c] ?? null, precision: precision[c] ?? null };
  });
}

/** Confusion matrices wider than this are only in the JSON. */
const WIDEST = 20;

function describe(
  { accuracy, loss, samples, correct, confusion }: Evaluation,
  perClass: readonly ClassScore[],
  classNames: readonly string[],
): string {
  const share = (value: number | null): string => (value === null ? '' : `${(100 * value).toFixed(1)} %`);
  const lines = [
    `accuracy ${(100 * accuracy).toFixed(2)} % (${count(correct)} of ${count(samples)})   loss ${loss.toFixed(4)}`,
    '',
    table(
      ['class', 'images', 'recall', 'precision'],
      perClass.map((c) => [c.name, `${c.samples}`, share(c.recall), share(c.precision)]),
    ),
  ];
  if (classNames.length <= WIDEST) {
    const rows = confusion.map((row, t) => [classNames[t]!, ...row.map((n) => (n === 0 ? '' : `${n}`))]);
    lines.push('', 'Confusion matrix (rows: true class, columns: predicted):', '', table(['', ...classNames], rows));
  }
  return lines.join('\n');
}
