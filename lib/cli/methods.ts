/** `torchgraft methods`: the methods, and what can be set about each. */
import { Command } from 'commander';
import { z } from 'zod';
import { asUsage, printResult, table } from './output.js';

export function methodsCommand(): Command {
  return new Command('methods')
    .summary('list the methods, or the options of one')
    .description('List the methods; with an id, the options of one and their defaults.')
    .argument('[method]', 'id of one method')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExamples:\n  $ torchgraft methods\n  $ torchgraft methods conv_adapter --json')
    .action(async (id: string | undefined, o: { json?: boolean }) => {
      const { findMethod, listMethods, methodInfo } = await import('../adapters/index.js');
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
      const shape = findMethod(id).options.shape as Readonly<Record<string, z.core.$ZodType>>;
      printResult(o.json, info, () => {
        const options = Object.entries(info.options).map(([key, value]) => [
          key,
          value === undefined ? '' : JSON.stringify(value),
          allowed(shape[key]),
        ]);
        const list = options.length === 0 ? 'It has no options.' : table(['option', 'default', 'values'], options);
        return `${info.id}: ${info.summary}\n${info.paper}\n\n${list}`;
      });
    });
}

/** What JSON Schema says of a value, as far as a line can hold it. */
interface ValueSchema {
  readonly type?: string;
  readonly enum?: readonly unknown[];
  readonly const?: string | number | boolean | null;
  readonly anyOf?: readonly ValueSchema[];
  readonly items?: ValueSchema;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly exclusiveMinimum?: number;
  readonly exclusiveMaximum?: number;
}

/** The values that an option takes, in a few words; nothing where they have no form of their own. */
function allowed(schema: z.core.$ZodType | undefined): string {
  if (schema === undefined) return '';
  return inWords(z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' }) as ValueSchema);
}

function inWords(schema: ValueSchema): string {
  if (schema.anyOf) return [...new Set(schema.anyOf.map(inWords))].filter((words) => words !== '').join(' or ');
  if (schema.enum) return schema.enum.map(String).join(', ');
  if (schema.const !== undefined) return String(schema.const);
  switch (schema.type) {
    case 'integer':
      return `whole number${rangeOf(schema)}`;
    case 'number':
      return `number${rangeOf(schema)}`;
    case 'boolean':
      return 'true, false';
    case 'array':
      return schema.items ? `list (${inWords(schema.items)})` : 'list';
    case 'object':
      return 'JSON object';
    case 'string':
      return 'text';
    case 'null':
      return 'null';
    default:
      return '';
  }
}

function rangeOf({ minimum, maximum, exclusiveMinimum: above, exclusiveMaximum: below }: ValueSchema): string {
  const isGiven = (bound: number | undefined): bound is number =>
    bound !== undefined && Math.abs(bound) < Number.MAX_SAFE_INTEGER;
  const least = isGiven(above) ? ` above ${above}` : isGiven(minimum) ? ` from ${minimum} on` : '';
  const most = isGiven(below) ? ` below ${below}` : isGiven(maximum) ? ` to ${maximum}` : '';
  return isGiven(minimum) && most !== '' && least.endsWith(' on') ? ` from ${minimum}${most}` : least + most;
}
