#!/usr/bin/env node
/**
 * `npx torchgraft COMMAND`. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Commands load LibTorch only when
 * they run, so that `--help` is quick and `doctor` works where nothing else does.
 */
import { Command, CommanderError } from 'commander';
import { packageVersion } from '../native/packages.js';
import { buildCommand } from './build.js';
import { convertCommand } from './convert.js';
import { doctorCommand } from './doctor.js';
import { evaluateCommand } from './evaluate.js';
import { finetuneCommand } from './finetune.js';
import { inspectCommand } from './inspect.js';
import { matrixCommand } from './matrix.js';
import { lidCommand } from './lid.js';
import { mergeCommand } from './merge.js';
import { methodsCommand } from './methods.js';
import { modelsCommand } from './models.js';
import { UsageError } from './output.js';
import { predictCommand } from './predict.js';
import { quickstartCommand } from './quickstart.js';
import { sitesCommand } from './sites.js';

const FAILURE = 1;
const USAGE = 2;

function buildProgram(): Command {
  const program = new Command('torchgraft')
    .description('Parameter-efficient fine-tuning of pretrained vision models, on LibTorch.')
    .version(packageVersion())
    .option('--debug', 'show the stack of an error')
    .showHelpAfterError('(--help lists the options, with examples)')
    .addHelpText(
      'after',
      `
A first session:
  $ torchgraft quickstart                        # trains, compares six methods, writes a report; under 5 minutes
  $ torchgraft sites cifar_resnet20              # where grafts can sit
  $ torchgraft inspect cifar_resnet20 conv_adapter
  $ torchgraft finetune cifar_resnet20 --weights resnet20.th --data photos --method conv_adapter --out runs/signs
  $ torchgraft evaluate runs/signs/adapter --weights resnet20.th --data photos/val
  $ torchgraft predict runs/signs/adapter --weights resnet20.th picture.jpg

'torchgraft COMMAND --help' lists the options of a command, with examples.`,
    );
  const commands = [
    quickstartCommand(),
    finetuneCommand(),
    evaluateCommand(),
    predictCommand(),
    mergeCommand(),
    convertCommand(),
    lidCommand(),
    inspectCommand(),
    sitesCommand(),
    modelsCommand(),
    methodsCommand(),
    matrixCommand(),
    doctorCommand(),
    buildCommand(),
  ];
  for (const command of commands) program.addCommand(command);
  for (const command of [program, ...commands]) command.exitOverride();
  return program;
}

/** Runs the command line; returns the exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  try {
    await buildProgram().parseAsync(argv.filter((word) => word !== '--debug'));
    return typeof process.exitCode === 'number' ? process.exitCode : 0;
  } catch (error) {
    // Commander has printed its own message, or the help that was asked for.
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : USAGE;
    const isDebug = argv.includes('--debug');
    const text = error instanceof Error ? (isDebug && error.stack) || error.message : String(error);
    process.stderr.write(`torchgraft: ${text}\n`);
    if (!isDebug && !(error instanceof UsageError)) process.stderr.write('(--debug shows where)\n');
    return error instanceof UsageError ? USAGE : FAILURE;
  }
}

// Whoever reads the output may stop early, as `head` does: that is no failure of ours.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});
process.exitCode = await main(process.argv);
