/** `torchgraft evaluate`: how good a trained adapter is, over all and per class. */
import { Command, Option } from 'commander';
import { addComputeOptions, integer, real, type ComputeOptions } from './arguments.js';
import { openLabeled } from './dataset.js';
import { leftOut, withKit } from './kits/kit.js';
import { note, printResult } from './output.js';
import { addScoringOptions, withScoring, type ScoringFlags } from './task_spec.js';
import { openTrained, prepareCompute } from './trained.js';

interface EvaluateFlags extends ComputeOptions, ScoringFlags {
  readonly weights?: string;
  readonly data: string;
  readonly split?: string;
  readonly valFraction: number;
  readonly splitSeed: number;
  readonly batchSize?: number;
  readonly skipBroken?: boolean;
  readonly json?: boolean;
}

/** Images at a time where nothing else is said; dense tasks hold maps for each. */
const BATCH = { classify: 64, segment: 8, detect: 4, multi: 4, video: 8 } as const;

export function evaluateCommand(): Command {
  const command = new Command('evaluate')
    .summary('accuracy, mean IoU or average precision, per class')
    .description(
      'Score an adapter folder, or a merged checkpoint, on labeled images: accuracy, per class, confusion matrix; for ' +
        'segmentation IoU, for detection average precision, for several tasks both, for videos top-1 and top-5.',
    )
    .argument('<target>', "adapter folder, or a file written by 'torchgraft merge'")
    .option('--weights <file>', "the backbone's weights (not for merged checkpoints, nor after --no-weights)")
    .requiredOption(
      '--data <dir>',
      'folder with a folder per class (segment: with images/ and masks/; detect: a COCO JSON file; multi: with images/, masks/KIND/ and objects.json); with --split, as given to finetune',
    )
    .addOption(
      new Option('--split <part>', 'score one part of the data given to finetune').choices(['train', 'val', 'test']),
    )
    .addOption(new Option('--val-fraction <share>', 'as given to finetune').argParser(real(0, 1)).default(0.2))
    .addOption(new Option('--split-seed <n>', 'as given to finetune').argParser(integer(0)).default(0))
    .addOption(
      new Option('--batch-size <n>', 'samples at a time (default: 64; segment, video 8; detect, multi 4)').argParser(
        integer(1),
      ),
    )
    .option('--skip-broken', 'leave out images that cannot be decoded')
    .option('--json', 'print JSON');
  addScoringOptions(command);
  return addComputeOptions(command)
    .addHelpText(
      'after',
      `
Examples:
  $ torchgraft evaluate runs/signs/adapter --weights resnet20.th --data photos/val
  $ torchgraft evaluate runs/signs/adapter --weights resnet20.th --data photos --split val --json
  $ torchgraft evaluate runs/roads/adapter --weights resnet50.pth --data roads --split val --windows 512,384
  $ torchgraft evaluate merged.safetensors --data photos/test`,
    )
    .action(runEvaluate);
}

async function runEvaluate(target: string, flags: EvaluateFlags): Promise<void> {
  const device = await prepareCompute(flags);
  const { evaluate } = await import('../train/index.js');
  const trained = await openTrained(target, flags.weights, device);
  const { model, classNames, transforms } = trained;
  const spec = withScoring(trained.spec, flags);
  const { answer, skipped } = await withKit(spec.kind, async (kit) => {
    const dataset = await openLabeled(kit, flags.data, {
      classNames,
      ...(flags.split === undefined ? {} : { split: flags.split }),
      valFraction: flags.valFraction,
      seed: flags.splitSeed,
      skipBroken: flags.skipBroken === true,
    });
    const loader = await kit.loader(dataset, {
      ...{ spec, transforms, isTraining: false, seed: 0, cacheBytes: 0 },
      batchSize: flags.batchSize ?? BATCH[spec.kind],
      skipBroken: flags.skipBroken === true,
    });
    const task = await kit.task(spec, classNames.length, {});
    const score = await evaluate(model, loader, { task });
    const skipped = new Set([...leftOut(dataset), ...loader.skipped].map(({ path }) => path));
    return { answer: await kit.describe(score, classNames, spec), skipped: [...skipped] };
  });
  if (skipped.length > 0) note(`left out ${skipped.length} broken images: ${skipped.join(', ')}`);
  printResult(flags.json, { target, ...answer.data, skipped: skipped.length }, answer.text);
}
