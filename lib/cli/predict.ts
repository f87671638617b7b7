/** `torchgraft predict`: what is in these pictures? */
import { Command, Option } from 'commander';
import type { Device } from '../tensor/index.js';
import { addComputeOptions, integer, type ComputeOptions } from './arguments.js';
import { openClassifier, prepareCompute, type Classifier } from './classifier.js';
import { asUsage, note, printResult, table, UsageError } from './output.js';

interface PredictFlags extends ComputeOptions {
  readonly weights?: string;
  readonly topK: number;
  readonly batchSize: number;
  readonly skipBroken?: boolean;
  readonly json?: boolean;
}

/** One image and its likeliest classes. */
interface ImagePrediction {
  readonly path: string;
  readonly top: readonly { readonly class: string; readonly probability: number }[];
}

export function predictCommand(): Command {
  const command = new Command('predict')
    .description('Classify image files, or all images of folders.')
    .argument('<target>', "adapter folder, or a file written by 'torchgraft merge'")
    .argument('<images...>', 'image files or folders of images')
    .option('--weights <file>', "the backbone's weights (not for merged checkpoints)")
    .addOption(new Option('--top-k <k>', 'classes to print per image').argParser(integer(1)).default(3))
    .addOption(new Option('--batch-size <n>', 'images at a time').argParser(integer(1)).default(32))
    .option('--skip-broken', 'leave out images that cannot be decoded')
    .option('--json', 'print JSON');
  return addComputeOptions(command)
    .addHelpText(
      'after',
      `
Examples:
  $ torchgraft predict runs/signs/adapter --weights resnet20.th photo.jpg
  $ torchgraft predict merged.safetensors holidays/ --top-k 1 --json`,
    )
    .action(runPredict);
}

async function runPredict(target: string, images: string[], flags: PredictFlags): Promise<void> {
  const device = await prepareCompute(flags);
  const { listImages } = await import('../data/index.js');
  const paths = asUsage(() => images.flatMap((path) => listImages(path)));
  if (paths.length === 0) throw new UsageError(`there are no images in ${images.join(', ')}`);
  const classifier = await openClassifier(target, flags.weights, device);
  const predictions: ImagePrediction[] = [];
  for (let start = 0; start < paths.length; start += flags.batchSize)
    predictions.push(...(await classify(classifier, paths.slice(start, start + flags.batchSize), flags, device)));
  printResult(flags.json, predictions, () =>
    table(
      ['image', ...Array.from({ length: predictions[0]?.top.length ?? 0 }, (_, i) => `${i + 1}.`)],
      predictions.map((p) => [p.path, ...p.top.map((t) => `${t.class} ${(100 * t.probability).toFixed(1)} %`)]),
    ),
  );
}

async function classify(
  { model, classNames, transforms }: Classifier,
  paths: readonly string[],
  { topK, skipBroken }: PredictFlags,
  device: Device,
): Promise<ImagePrediction[]> {
  const { decodeImage, ImageError, Pipeline } = await import('../data/index.js');
  const { noGrad, scope } = await import('../tensor/index.js');
  const pipeline = new Pipeline(transforms);
  const decoded = await Promise.allSettled(paths.map(async (path) => pipeline.apply(await decodeImage(path))));
  const good = decoded.flatMap((outcome, i) => {
    if (outcome.status === 'fulfilled') return [{ path: paths[i]!, image: outcome.value }];
    if (skipBroken !== true || !(outcome.reason instanceof ImageError)) throw outcome.reason;
    note(`left out: ${outcome.reason.message}`);
    return [];
  });
  if (good.length === 0) return [];
  const k = Math.min(topK, classNames.length);
  const { values, indices } = scope(() =>
    noGrad(() => {
      const input = pipeline.collate(
        good.map((g) => g.image),
        { device },
      );
      const [values, indices] = model.run(input).float().softmax(1).topk(k, 1);
      return { values: values.tolist() as number[][], indices: indices.tolist() as number[][] };
    }),
  );
  return good.map(({ path }, i) => ({
    path,
    top: indices[i]!.map((c, j) => ({ class: classNames[c] ?? String(c), probability: values[i]![j]! })),
  }));
}
