/** `torchgraft models`: the backbones that can be built. */
import { Command } from 'commander';
import { count, printResult, table, UsageError } from './output.js';

interface ModelRow {
  readonly name: string;
  readonly family: string;
  readonly parameters: number;
  /** Billions of multiply-accumulates at the input size. */
  readonly gmacs: number;
  readonly inputSize: readonly number[];
  /** Channels of the feature levels, coarsest last. */
  readonly channels: readonly number[];
  readonly source: string;
  readonly license: string;
}

export function modelsCommand(): Command {
  return new Command('models')
    .summary('list the backbones, or those with a part of a name')
    .description('List the backbones: parameters, multiply-accumulates, input sizes, where checkpoints come from.')
    .argument('[part]', 'only names that contain this')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExamples:\n  $ torchgraft models\n  $ torchgraft models vit_small --json')
    .action(async (part: string | undefined, o: { json?: boolean }) => {
      const rows = await describeModels(part ?? '');
      if (rows.length === 0) throw new UsageError(`no model has '${part}' in its name; 'torchgraft models' lists all`);
      printResult(o.json, rows, () =>
        table(
          ['model', 'parameters', 'GMACs', 'input', 'checkpoints'],
          rows.map((r) => [r.name, count(r.parameters), r.gmacs.toFixed(2), r.inputSize.join('x'), r.source]),
        ),
      );
    });
}

async function describeModels(part: string): Promise<ModelRow[]> {
  const { listModels, modelInfo } = await import('../models/index.js');
  return listModels()
    .filter((name) => name.includes(part))
    .map((name) => {
      const { family, parameters, macs, config, features, checkpoints } = modelInfo(name);
      const channels = features.map((level) => level.channels);
      return { name, family, parameters, gmacs: macs / 1e9, inputSize: config.inputSize, channels, ...checkpoints };
    });
}
