/** `torchgraft inspect MODEL METHOD`: what would be trained, counted without weights. */
import { Command, Option } from 'commander';
import { collect, integer, parseSettings } from './arguments.js';
import { asUsage, count, printResult, table } from './output.js';

interface InspectFlags {
  readonly set?: string[];
  readonly classes?: number;
  readonly imageSize?: number;
  readonly json?: boolean;
  readonly sites?: boolean;
}

export function inspectCommand(): Command {
  return new Command('inspect')
    .summary('count trainable and total parameters')
    .description('Count trainable and total parameters of a backbone with a method, without loading weights.')
    .argument('<model>', "a backbone, see 'torchgraft models'")
    .argument('<method>', "a method, see 'torchgraft methods'")
    .option('--set <key=value>', 'an option of the method (repeatable)', collect)
    .addOption(
      new Option(
        '--classes <n>',
        "a new head for n classes (default: the backbone's own classifier is trained)",
      ).argParser(integer(1)),
    )
    .addOption(new Option('--image-size <n>', "side of the network's input").argParser(integer(1)))
    .option('--sites', 'list the grafts one by one')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      `
Examples:
  $ torchgraft inspect cifar_resnet20 conv_adapter --set reduction=4 --classes 10
  $ torchgraft inspect vit_base_patch16_224 lora --set rank=8 --sites
  $ torchgraft inspect resnet50 bitfit --json`,
    )
    .action(async (name: string, method: string, flags: InspectFlags) => {
      const { createModel } = await import('../models/index.js');
      const { graft } = await import('../adapters/index.js');
      const { withDefaults } = await import('../tensor/index.js');
      const settings = parseSettings(flags.set ?? []);
      const { summary, options } = asUsage(() =>
        withDefaults({ device: 'meta' }, () => {
          const model = createModel(name, flags.imageSize === undefined ? {} : { imgSize: flags.imageSize });
          const adapter = graft(
            model,
            method,
            settings,
            flags.classes === undefined ? {} : { head: { classes: flags.classes } },
          );
          return { summary: adapter.summary(), options: adapter.options };
        }),
      );
      printResult(flags.json, { model: name, ...summary, options }, () => {
        const parts: [string, number][] = [
          ['grafts', summary.grafts],
          ['backbone', summary.backbone],
          ['head', summary.head],
        ];
        const rows = parts.filter(([, n]) => n > 0).map(([part, n]) => [part, count(n)]);
        const lines = [
          `${name} + ${method} ${JSON.stringify(options)}`,
          '',
          table(['part', 'trainable'], [...rows, ['sum', count(summary.trainable)]]),
          '',
          `${count(summary.trainable)} of ${count(summary.total)} parameters are trained: ${summary.percent.toFixed(3)} %`,
        ];
        if (flags.sites === true)
          lines.push(
            '',
            table(
              ['site', 'rule', 'parameters'],
              summary.sites.map((s) => [s.site, s.rule, count(s.parameters)]),
            ),
          );
        return lines.join('\n');
      });
    });
}
