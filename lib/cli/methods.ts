/** `torchgraft methods`: the methods, and what can be set about each. */
import { Command } from 'commander';
import { asUsage, printResult, table } from './output.js';

export function methodsCommand(): Command {
  return new Command('methods')
    .description('List the methods; with an id, the options of one and their defaults.')
    .argument('[method]', 'id of one method')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExamples:\n  $ torchgraft methods\n  $ torchgraft methods conv_adapter --json')
    .action(async (id: string | undefined, o: { json?: boolean }) => {
      const { listMethods, methodInfo } = await import('../adapters/index.js');
      if (id === undefined) {
        const all = listMethods().map(methodInfo);
        printResult(o.json, all, () =>
          table(
            ['method', 'what it does'],
            all.map((m) => [m.id, m.summary]),
          ),
        );
        return;
      }
      const info = asUsage(() => methodInfo(id));
      printResult(o.json, info, () => {
        const options = Object.entries(info.options).map(([key, value]) => [
          key,
          value === undefined ? '' : JSON.stringify(value),
        ]);
        const list = options.length === 0 ? 'It has no options.' : table(['option', 'default'], options);
        return `${info.id}: ${info.summary}\n${info.paper}\n\n${list}`;
      });
    });
}
