/** `torchgraft merge`: adapter folder and backbone to one checkpoint. */
import { Command, Option } from 'commander';
import type { Adapter, MergeReport } from '../adapters/index.js';
import type { NameFormat } from '../models/index.js';
import { addComputeOptions, namesOption, type ComputeOptions } from './arguments.js';
import { printResult, UsageError } from './output.js';
import type { Tensor } from '../tensor/index.js';
import { inputSize, openTrained, prepareCompute, type Trained } from './trained.js';

interface MergeFlags extends ComputeOptions {
  readonly weights?: string;
  readonly out: string;
  readonly format: 'safetensors' | 'torch';
  readonly names: NameFormat;
  readonly probe?: boolean;
  readonly json?: boolean;
}

export function mergeCommand(): Command {
  const command = new Command('merge')
    .summary('adapter folder and backbone to one checkpoint')
    .description(
      "Fold an adapter into its backbone's weights and write one checkpoint; 'evaluate' and 'predict' read safetensors ones " +
        'without --weights, whatever the task. Only methods that change weights linearly can be merged exactly; the others are refused.',
    )
    .argument('<adapter>', 'adapter folder')
    .option('--weights <file>', "the backbone's weights")
    .requiredOption('--out <file>', 'the checkpoint to write')
    .addOption(
      new Option('--format <name>', 'safetensors, or torch for torch.load')
        .choices(['safetensors', 'torch'])
        .default('safetensors'),
    )
    .addOption(namesOption())
    .option('--probe', 'measure by how much the output for a random image changes')
    .option('--json', 'print JSON');
  return addComputeOptions(command)
    .addHelpText(
      'after',
      '\nExamples:\n  $ torchgraft merge runs/signs/adapter --weights resnet20.th --out signs.safetensors --probe\n  $ torchgraft merge runs/signs/adapter --weights vit.safetensors --out signs.pt --format torch --names transformers\n  $ torchgraft evaluate signs.safetensors --data photos/val',
    )
    .action(async (folder: string, flags: MergeFlags) => {
      const device = await prepareCompute(flags);
      const trained = await openTrained(folder, flags.weights, device);
      const { adapter, spec, stored } = trained;
      if (adapter === null) throw new UsageError(`${folder} is a merged checkpoint already`);
      if (stored !== null && flags.names !== 'own')
        throw new UsageError(`--names ${flags.names}: a model that was trained to ${spec.kind} has its own names only`);
      const report = await merge(adapter, flags.probe === true, trained);
      const { saveMerged } = await import('../adapters/index.js');
      const { classNames, transforms } = trained;
      saveMerged(
        flags.out,
        adapter.model,
        { classNames, transforms, ...(stored !== null && { task: stored }) },
        { format: flags.format, names: flags.names },
      );
      printResult(flags.json, { out: flags.out, ...report }, () => describe(flags.out, report));
    });
}

async function merge(adapter: Adapter, withProbe: boolean, { spec, transforms }: Trained): Promise<MergeReport> {
  if (!withProbe) return adapter.merge();
  const { aten, manualSeed, randn } = await import('../tensor/index.js');
  const { Detector } = await import('../heads/index.js');
  const [height, width] = inputSize(transforms).imageSize ?? ('size' in spec ? [spec.size, spec.size] : [224, 224]);
  manualSeed(0);
  const [first] = adapter.model.parameters();
  const frames = spec.kind === 'video' ? [spec.frames] : [];
  const probe = randn([1, 3, ...frames, height, width], { device: first?.device ?? 'cpu' });
  const { model } = adapter;
  if (!(model instanceof Detector)) return adapter.merge({ probe });
  // What a detector finds is a matter of thresholds; the levels that it reads are not.
  const output = (images: Tensor): Tensor => aten.cat(model.backbone.maps(images).map((map) => map.flatten()));
  return adapter.merge({ probe, output });
}

function describe(out: string, { merged, biasesCreated, outputChange }: MergeReport): string {
  const lines = [`wrote ${out}: ${merged.length} modules hold merged weights`];
  if (biasesCreated.length > 0)
    lines.push(
      `${biasesCreated.length} of them got a bias that the published architecture lacks, ${biasesCreated[0]} the first`,
    );
  if (outputChange !== null)
    lines.push(
      `largest change of the output on a probe: ${outputChange.absolute.toExponential(2)} (${outputChange.relative.toExponential(2)} of the largest)`,
    );
  return lines.join('\n');
}
