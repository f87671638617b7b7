/** `torchgraft predict`: what is in these pictures? */
import { Command, Option } from 'commander';
import { addComputeOptions, integer, real, type ComputeOptions } from './arguments.js';
import { withKit } from './kits/kit.js';
import { printResult } from './output.js';
import { addScoringOptions, withScoring, type ScoringFlags } from './task_spec.js';
import { openTrained, prepareCompute } from './trained.js';

interface PredictFlags extends ComputeOptions, ScoringFlags {
  readonly weights?: string;
  readonly topK: number;
  readonly minScore: number;
  readonly batchSize: number;
  readonly out: string;
  readonly skipBroken?: boolean;
  readonly json?: boolean;
}

export function predictCommand(): Command {
  const command = new Command('predict')
    .summary('classify images or videos; draw segments and boxes')
    .description(
      'Classify image files, or all images of folders, or videos; of segmentation and detection, write pictures with ' +
        'colored classes, or with boxes and labels.',
    )
    .argument('<target>', "adapter folder, or a file written by 'torchgraft merge'")
    .argument('<images...>', 'image files or folders of images; for videos, folders of frames or video files')
    .option('--weights <file>', "the backbone's weights (not for merged checkpoints, nor after --no-weights)")
    .addOption(new Option('--top-k <k>', 'classes to print per image or video').argParser(integer(1)).default(3))
    .addOption(
      new Option('--min-score <s>', 'detect, multi: only boxes of at least this score')
        .argParser(real(0, 1))
        .default(0.5),
    )
    .addOption(new Option('--batch-size <n>', 'images at a time').argParser(integer(1)).default(32))
    .option('--out <dir>', 'segment, detect, multi: receives a PNG for each image (and task)', 'overlays')
    .option('--skip-broken', 'leave out images that cannot be decoded')
    .option('--json', 'print JSON');
  addScoringOptions(command);
  return addComputeOptions(command)
    .addHelpText(
      'after',
      `
Examples:
  $ torchgraft predict runs/signs/adapter --weights resnet20.th photo.jpg
  $ torchgraft predict runs/roads/adapter --weights resnet50.pth drive/ --out drive/seen
  $ torchgraft predict merged.safetensors holidays/ --top-k 1 --json`,
    )
    .action(runPredict);
}

async function runPredict(target: string, images: string[], flags: PredictFlags): Promise<void> {
  const device = await prepareCompute(flags);
  const trained = await openTrained(target, flags.weights, device);
  const spec = withScoring(trained.spec, flags);
  const { batchSize, topK, minScore, out, skipBroken = false } = flags;
  const o = { device, batchSize, topK, minScore, out, skipBroken };
  const answer = await withKit(spec.kind, (kit) => kit.predict({ ...trained, spec }, images, o));
  printResult(flags.json, answer.data, answer.text);
}
