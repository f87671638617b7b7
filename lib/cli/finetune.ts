/** `torchgraft finetune`: train a method on images or videos. */
import { Command, Option } from 'commander';
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { addComputeOptions, collect, integer, real } from './arguments.js';
import { TASK_DATA_HELP } from './dataset.js';
import { count, note, printResult, UsageError } from './output.js';
import { addPreprocessOptions } from './preprocess.js';
import { addTaskOptions } from './task_spec.js';
import {
  mustAgree,
  readSettings,
  resolveSettings,
  settingsFile,
  type FinetuneFlags,
  type RunSettings,
} from './settings.js';

export function finetuneCommand(): Command {
  const command = new Command('finetune')
    .summary('train a method beside a frozen backbone: classify, segment, detect, several at once, videos')
    .description(
      'Train a method beside a frozen pretrained backbone: to classify images, to segment them, to detect objects in them, to do both at once, or to classify videos.',
    )
    .argument('[model]', "a backbone, see 'torchgraft models' (with --resume: taken from the run)")
    .requiredOption('--out <dir>', 'receives the adapter folder, the state of the run, log and report')
    .option('--weights <file>', "the backbone's pretrained weights: safetensors or PyTorch")
    .option('--no-weights', 'start from random weights')
    .option(
      '--text-weights <file>',
      'dense_clip, lv_adapter: a CLIP whose text tower is used (default: that of --weights)',
    )
    .option('--vocabulary <file>', "dense_clip, lv_adapter: CLIP's bpe_simple_vocab_16e6.txt.gz")
    .option('--from <adapter>', 'start from what the adapter folder of an earlier run has learned, such as its head')
    .option('--data <dir>', TASK_DATA_HELP)
    .addOption(
      new Option('--val-fraction <share>', 'held back for validation where data has no val/')
        .argParser(real(0, 1))
        .default(0.2),
    )
    .addOption(new Option('--split-seed <n>', 'seed of that split').argParser(integer(0)).default(0));
  addTaskOptions(command);
  command
    .optionsGroup('Method:')
    .option(
      '--method <id>',
      "what is trained beside the backbone, see 'torchgraft methods' (default: conv_adapter; representation_separation, dense_clip: full; lv_adapter: linear_probe)",
    )
    .option(
      '--set <key=value>',
      "an option of the method, such as rank=4; 'torchgraft methods ID' lists them (repeatable)",
      collect,
    )
    .addOption(
      new Option('--bn-stats <mode>', "BatchNorm's running statistics (default: the method's)").choices([
        'frozen',
        'update',
      ]),
    )
    .optionsGroup('Training:')
    .addOption(new Option('--epochs <n>', 'passes over the training data').argParser(integer(1)).default(10))
    .addOption(new Option('--batch-size <n>', 'samples per training step').argParser(integer(1)).default(64))
    .addOption(
      new Option('--optimizer <kind>', 'what steps are made with').choices(['adamw', 'adam', 'sgd']).default('adamw'),
    )
    .addOption(new Option('--lr <rate>', "learning rate (default: the method's)").argParser(real(0)))
    .addOption(
      new Option('--weight-decay <w>', 'on tensors of more than one dimension').argParser(real(0)).default(1e-4),
    )
    .addOption(
      new Option('--schedule <kind>', 'after the warm-up: cosine to 0, or constant')
        .choices(['cosine', 'constant'])
        .default('cosine'),
    )
    .addOption(new Option('--warmup-epochs <n>', 'linear warm-up, per step').argParser(real(0)).default(1))
    .addOption(
      new Option('--label-smoothing <s>', 'classify, video: share of the target that goes to all classes')
        .argParser(real(0, 1))
        .default(0),
    )
    .addOption(new Option('--accumulate <n>', 'batches per optimizer step').argParser(integer(1)).default(1))
    .addOption(new Option('--clip <norm>', 'largest joint norm of the gradients').argParser(real(Number.MIN_VALUE)))
    .option('--amp', 'mixed precision in bfloat16')
    .addOption(new Option('--seed <n>', 'of head, grafts, order and augmentation').argParser(integer(0)).default(0));
  addPreprocessOptions(command);
  command
    .optionsGroup('Running:')
    .option('--resume', 'go on with the run in --out, exactly where it stopped')
    .option('--overwrite', 'start anew although --out holds a run')
    .addOption(
      new Option('--keep <which>', 'weights that become the adapter folder').choices(['best', 'last']).default('best'),
    )
    .addOption(
      new Option('--save-every <steps>', 'save the state so often, besides after each epoch').argParser(integer(1)),
    )
    .option('--skip-broken', 'leave out images that cannot be decoded')
    .addOption(
      new Option('--cache <mb>', 'megabytes of decoded images to keep in memory').argParser(integer(0)).default(256),
    )
    .option('--quiet', 'no progress')
    .option('--json', 'print the result as JSON');
  return addComputeOptions(command)
    .addHelpText(
      'after',
      `
Examples:
  Conv-Adapter on your photographs, one folder per class:
  $ torchgraft finetune cifar_resnet20 --weights resnet20.th --data photos --method conv_adapter --out runs/a

  LoRA of rank 4, the images seen whole at 32x32, ten epochs:
  $ torchgraft finetune cifar_resnet20 --weights resnet20.th --data photos --out runs/b \\
      --method lora --set rank=4 --resize whole --image-size 32 --crop-padding 4 --no-flip

  Semantic segmentation with a UPerNet head, and detection with Faster R-CNN, of your own images:
  $ torchgraft finetune resnet50 --weights resnet50.pth --task segment --method spm --data roads --out runs/roads
  $ torchgraft finetune resnet50 --weights resnet50.pth --task detect --head faster_rcnn --data coco --out runs/boxes

  LV-Adapter: segmentation, drivable area and boxes at once; adapt beside the frozen trunk, then finetune all of it:
  $ torchgraft finetune resnet50_clip --weights RN50.pt --vocabulary bpe_simple_vocab_16e6.txt.gz --task multi \\
      --data driving --out runs/adapt
  $ torchgraft finetune resnet50_clip --weights RN50.pt --vocabulary bpe_simple_vocab_16e6.txt.gz --task multi \\
      --data driving --method full --from runs/adapt/adapter --out runs/finetune

  Interrupted by Ctrl-C or a power cut? The same weights as without, bit for bit:
  $ torchgraft finetune --resume --out runs/b

In --out: adapter/ (for evaluate, predict, merge), report.html, log.jsonl, result.json, run.json, best and last
.safetensors (the state of the run).`,
    )
    .action(runFinetune);
}

async function runFinetune(model: string | undefined, flags: FinetuneFlags, command: Command): Promise<void> {
  const settings = await settingsFor(model, flags, command);
  const { trainRun } = await import('./run.js');
  const { INTERRUPTED, onInterrupt, progress } = await import('../train/index.js');
  using interrupt = onInterrupt(() => note('\nsaving; Ctrl-C again ends at once'));
  const result = await trainRun(settings, flags.out, {
    resume: flags.resume === true,
    signal: interrupt.signal,
    onEvent: flags.quiet === true ? undefined : progress(),
  });
  if (result === null) {
    note(`interrupted; the state is saved. To go on: torchgraft finetune --resume --out ${flags.out}`);
    process.exitCode = INTERRUPTED;
    return;
  }
  printResult(flags.json, result, () =>
    [
      `${result.method} on ${result.model}: ${count(result.trainable)} of ${count(result.total)} parameters trained (${result.percent.toFixed(2)} %)`,
      `validation ${result.score} ${(100 * result.accuracy).toFixed(2)} % (${result.keep} epoch, ${result.keptEpoch} of ${result.epochs})`,
      ...(result.skipped > 0 ? [`${result.skipped} broken images were left out`] : []),
      `adapter folder  ${result.adapter}`,
      `report          ${result.report}`,
    ].join('\n'),
  );
}

/** The settings of the flags, or with --resume those of the run; writes `run.json` for a new run. */
async function settingsFor(model: string | undefined, flags: FinetuneFlags, command: Command): Promise<RunSettings> {
  const saved = readSettings(flags.out);
  const { setNumThreads } = await import('../tensor/index.js');
  if (flags.resume === true && saved !== null) {
    // The same threads give the same sums, bit for bit.
    setNumThreads(flags.threads ?? saved.threads);
    if (model !== undefined) mustAgree(saved, await resolveSettings(model, flags), flags.out);
    else refuseOthers(command, ['out', 'resume', 'json', 'quiet', 'threads']);
    return saved;
  }
  if (flags.resume === true && model === undefined) throw new UsageError(`--resume: there is no run in ${flags.out}`);
  if (model === undefined)
    throw new UsageError("the model is missing, such as cifar_resnet20 ('torchgraft models' lists them)");
  if (saved !== null && flags.overwrite !== true)
    throw new UsageError(`${flags.out} holds a run already: --resume goes on with it, --overwrite starts anew`);
  if (saved === null && existsSync(flags.out) && readdirSync(flags.out).length > 0)
    throw new UsageError(`${flags.out} is not empty and holds no run; choose another folder for --out`);
  if (flags.threads !== undefined) setNumThreads(flags.threads);
  const settings = await resolveSettings(model, flags);
  mkdirSync(flags.out, { recursive: true });
  writeFileSync(settingsFile(flags.out), `${JSON.stringify(settings, null, 2)}\n`);
  return settings;
}

function refuseOthers(command: Command, allowed: readonly string[]): void {
  const given = command.options
    .map((option) => option.attributeName())
    .filter((name) => command.getOptionValueSource(name) === 'cli' && !allowed.includes(name));
  if (given.length > 0)
    throw new UsageError(
      `--resume without a model takes all settings from the run; leave out ${[...new Set(given)].join(', ')}`,
    );
}
