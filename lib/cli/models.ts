/** `torchgraft models`: the backbones that can be built. */
import { Command } from 'commander';
import { count, printResult, table, UsageError } from './output.js';

interface ModelRow {
  readonly name: string;
  readonly parameters: number;
  readonly inputSize: readonly number[];
  readonly sites: number;
}

export function modelsCommand(): Command {
  return new Command('models')
    .description('List the backbones, their parameters and input sizes.')
    .argument('[part]', 'only names that contain this')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExamples:\n  $ torchgraft models\n  $ torchgraft models vit_small --json')
    .action(async (part: string | undefined, o: { json?: boolean }) => {
      const rows = await describeModels(part ?? '');
      if (rows.length === 0) throw new UsageError(`no model has '${part}' in its name; 'torchgraft models' lists all`);
      printResult(o.json, rows, () =>
        table(
          ['model', 'parameters', 'input', 'sites'],
          rows.map((r) => [r.name, count(r.parameters), r.inputSize.join('x'), count(r.sites)]),
        ),
      );
    });
}

async function describeModels(part: string): Promise<ModelRow[]> {
  const { createModel, listModels } = await import('../models/index.js');
  const { withDefaults } = await import('../tensor/index.js');
  return listModels()
    .filter((name) => name.includes(part))
    .map((name) => {
      // On the meta device nothing is allocated, so even the largest model is counted at once.
      const model = withDefaults({ device: 'meta' }, () => createModel(name));
      const parameters = model.parameters().reduce((sum, p) => sum + p.numel(), 0);
      return { name, parameters, inputSize: model.config.inputSize, sites: model.sites().length };
    });
}
