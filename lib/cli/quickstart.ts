/** `torchgraft quickstart`: pretrain on one task, adapt to another with several methods, compare. */
import { Command, Option } from 'commander';
import { integer } from './arguments.js';
import { count, note, printResult, table } from './output.js';

interface QuickstartFlags {
  readonly out: string;
  readonly backbone: 'resnet' | 'vit';
  readonly methods?: string[];
  readonly images?: number;
  readonly targetImages?: number;
  readonly epochs?: number;
  readonly seed: number;
  readonly threads?: number;
  readonly json?: boolean;
}

export function quickstartCommand(): Command {
  return new Command('quickstart')
    .summary('compare six methods on procedural images: no download, under 5 minutes')
    .description(
      'See the point in a few minutes, without any download: pretrains a small ResNet on the shapes of procedural images, ' +
        'adapts it to another task with six methods, prints how they compare, and writes an adapter folder and a report.',
    )
    .option('--out <dir>', 'folder for the adapter and the report', 'runs/quickstart')
    .addOption(
      new Option(
        '--backbone <kind>',
        'a small residual network, or a small vision transformer and more methods (minutes for each)',
      )
        .choices(['resnet', 'vit'])
        .default('resnet'),
    )
    .option('--methods <id...>', 'only these methods; with the transformer also some that are not compared otherwise')
    .addOption(
      new Option(
        '--images <n>',
        'images to pretrain on; less is faster and worse (default: 5000, 3000 for the transformer)',
      ).argParser(integer(64)),
    )
    .addOption(
      new Option('--target-images <n>', 'images of the new task (default: 1000, 2000 for the transformer)').argParser(
        integer(16),
      ),
    )
    .addOption(
      new Option('--epochs <n>', 'epochs of adaptation (default: 6, 8 for the transformer)').argParser(integer(1)),
    )
    .addOption(new Option('--seed <n>', 'of images, weights and order').argParser(integer(0)).default(0))
    .addOption(new Option('--threads <n>', 'CPU threads (default: all cores)').argParser(integer(1)))
    .option('--json', 'print the comparison as JSON')
    .addHelpText(
      'after',
      '\nExamples:\n  $ torchgraft quickstart\n  $ torchgraft quickstart --images 1000 --out /tmp/quick\n  $ torchgraft quickstart --backbone vit --methods linear_probe vpt convpass',
    )
    .action(async (flags: QuickstartFlags) => {
      const { compareMethods } = await import('./comparison.js');
      const { INTERRUPTED, onInterrupt, progress } = await import('../train/index.js');
      const { setNumThreads } = await import('../tensor/index.js');
      if (flags.threads !== undefined) setNumThreads(flags.threads);
      using interrupt = onInterrupt();
      const result = await compareMethods({
        out: flags.out,
        backbone: flags.backbone,
        ...(flags.methods && { methods: flags.methods }),
        ...(flags.images !== undefined && { images: flags.images }),
        ...(flags.targetImages !== undefined && { targetImages: flags.targetImages }),
        ...(flags.epochs !== undefined && { epochs: flags.epochs }),
        seed: flags.seed,
        signal: interrupt.signal,
        listener: (label) => progress({ label }),
        note,
      });
      if (result === null) {
        process.exitCode = INTERRUPTED;
        return;
      }
      printResult(flags.json, result, () =>
        [
          '',
          table(
            ['method', 'trainable', 'percent', 'accuracy', 'seconds'],
            result.rows.map((r) => [
              r.method,
              count(r.trainable),
              `${r.percent.toFixed(2)} %`,
              `${(100 * r.accuracy).toFixed(1)} %`,
              r.seconds.toFixed(1),
            ]),
          ),
          '',
          `backbone        ${result.backbone}`,
          `adapter folder  ${result.adapter}`,
          `report          ${result.report}`,
          '',
          'Next:',
          `  torchgraft evaluate ${result.adapter} --weights ${result.backbone} --data ${result.data} --split test`,
          '  torchgraft finetune --help',
        ].join('\n'),
      );
    });
}
