/** `torchgraft doctor`: what this machine has, what it lacks, and what to do about it. */
import { Command } from 'commander';
import { printResult } from './output.js';

/** One program that a source build needs. */
export interface ToolReport {
  readonly name: string;
  readonly command: string | null;
  readonly version: string | null;
  readonly ok: boolean;
  /** What to install; null when it is fine. */
  readonly advice: string | null;
}

/** A LibTorch that was found. */
export interface LibtorchReport {
  readonly dir: string;
  readonly version: string;
  /** Release of a CUDA build ('unknown' when the build does not say); null for a CPU build. */
  readonly cuda: string | null;
  readonly origin: 'LIBTORCH' | 'python' | 'cache';
}

/** The compiled addon, tried in a process of its own. */
export interface AddonReport {
  readonly path: string | null;
  readonly loads: boolean;
  readonly error: string | null;
  /** LibTorch that it runs on, and the one whose headers it was compiled with. */
  readonly torch: string | null;
  readonly compiledAgainst: string | null;
  readonly cuda: string | null;
  readonly devices: readonly string[];
  readonly threads: number | null;
}

/** What `torchgraft doctor --json` prints. */
export interface EnvironmentReport {
  readonly torchgraft: string;
  /** Whether torchgraft runs here; without it, `advice` says how to get there. */
  readonly ok: boolean;
  readonly node: { readonly version: string; readonly minimum: string; readonly ok: boolean };
  readonly platform: {
    readonly os: string;
    readonly release: string;
    readonly arch: string;
    readonly glibc: string | null;
    readonly processors: number;
    readonly memoryBytes: number;
  };
  readonly tools: readonly ToolReport[];
  readonly libtorch: LibtorchReport | null;
  /** Why each place before the one that was found had no usable LibTorch. */
  readonly libtorchTried: readonly string[];
  readonly addon: AddonReport;
  readonly advice: readonly string[];
}

interface EnvironmentModule {
  readonly checkEnvironment: () => EnvironmentReport;
  readonly formatEnvironment: (report: EnvironmentReport) => string;
}

/** The checks live with the build scripts, which run before anything is compiled. */
const environment = async (): Promise<EnvironmentModule> =>
  (await import(new URL('../../scripts/build/environment.mjs', import.meta.url).href)) as EnvironmentModule;

/** Everything that decides whether torchgraft can be built and run on this machine. */
export async function checkEnvironment(): Promise<EnvironmentReport> {
  return (await environment()).checkEnvironment();
}

export function doctorCommand(): Command {
  return new Command('doctor')
    .summary('check this machine: what is installed, what is missing')
    .description('Check this machine: Node, compiler, CMake, Python, LibTorch, the native addon, devices.')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExit code: 0 when torchgraft runs here, else 1.\n\nExample:\n  $ torchgraft doctor')
    .action(async (o: { json?: boolean }) => {
      const { checkEnvironment, formatEnvironment } = await environment();
      const report = checkEnvironment();
      printResult(o.json, report, () => formatEnvironment(report));
      if (!report.ok) process.exitCode = 1;
    });
}
