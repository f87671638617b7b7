/** `torchgraft matrix`: which methods can be set into which backbones, and why not where they cannot. */
import { Command } from 'commander';
import type { MatrixCell } from '../adapters/index.js';
import { asUsage, printResult, table } from './output.js';

interface MatrixFlags {
  readonly methods?: string[];
  readonly models?: string[];
  readonly all?: boolean;
  readonly json?: boolean;
}

/** Backbones down, methods across; the reasons follow, each once. */
function render(cells: readonly MatrixCell[]): string {
  const methods = [...new Set(cells.map(({ method }) => method))];
  const models = [...new Set(cells.map(({ model }) => model))];
  const reasons = [...new Set(cells.flatMap(({ reason }) => reason ?? []))];
  const marks = models.map((model) => [
    model,
    ...methods.map((method) => {
      const cell = cells.find((c) => c.method === method && c.model === model);
      return cell?.reason == null ? 'yes' : `(${reasons.indexOf(cell.reason) + 1})`;
    }),
  ]);
  const notes = reasons.map((reason, i) => `(${i + 1}) ${reason}`);
  return [table(['backbone', ...methods], marks), ...(notes.length > 0 ? ['', ...notes] : [])].join('\n');
}

export function matrixCommand(): Command {
  return new Command('matrix')
    .summary('show which methods fit into which backbones, and why not')
    .description('Show which methods can be set into which backbones, and the reason where one cannot.')
    .option('--methods <id...>', 'only these methods')
    .option('--models <name...>', 'only these backbones (default: the first of each family)')
    .option('--all', 'every backbone instead of the first of each family')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      '\nExamples:\n  $ torchgraft matrix\n  $ torchgraft matrix --methods vpt lora --models resnet50 vit_small_patch16_224 --json',
    )
    .action(async (o: MatrixFlags) => {
      const { compatibility, listMethods } = await import('../adapters/index.js');
      const { listFamilies, listModels } = await import('../models/index.js');
      const first = (): string[] => listFamilies().flatMap((family) => listModels(family).slice(0, 1));
      const models = o.models ?? (o.all === true ? listModels() : first());
      const cells = asUsage(() => compatibility(o.methods ?? listMethods(), models));
      printResult(o.json, cells, () => render(cells));
    });
}
