/** `torchgraft sites MODEL`: the places of a backbone where grafts can sit. */
import { Command } from 'commander';
import { asUsage, printResult, table, UsageError } from './output.js';

export function sitesCommand(): Command {
  return new Command('sites')
    .summary('list the places of a backbone where grafts can sit')
    .description('List the sites of a backbone: path, roles, channels, layout, stage and depth.')
    .argument('<model>', "a backbone, see 'torchgraft models'")
    .option('--role <role>', 'only sites with this role')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      '\nExamples:\n  $ torchgraft sites cifar_resnet20 --role conv\n  $ torchgraft sites vit_small_patch16_224 --role attention --json',
    )
    .action(async (name: string, o: { role?: string; json?: boolean }) => {
      const { createModel } = await import('../models/index.js');
      const { withDefaults } = await import('../tensor/index.js');
      const model = asUsage(() => withDefaults({ device: 'meta' }, () => createModel(name)));
      const all = model.sites();
      const sites = all.filter((s) => o.role === undefined || s.roles.includes(o.role));
      if (sites.length === 0) {
        const roles = [...new Set(all.flatMap((s) => s.roles))].sort();
        throw new UsageError(`${name} has no site with role '${o.role}'; its roles are ${roles.join(', ')}`);
      }
      const rows = sites.map(({ module, ...site }) => ({ ...site, type: module.constructor.name }));
      printResult(o.json, rows, () =>
        table(
          ['path', 'module', 'roles', 'in', 'out', 'layout', 'stage', 'depth'],
          rows.map((r) => [
            r.path,
            r.type,
            r.roles.join(' '),
            `${r.in}`,
            `${r.out}`,
            r.layout,
            `${r.stage ?? ''}`,
            `${r.depth ?? ''}`,
          ]),
        ),
      );
    });
}
