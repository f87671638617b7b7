/**
 * ESLint rule: the folders of lib/ import downward only, in the order of the design. A folder may import from itself and
 * from those before it in `order`; lib/index.ts, which re-exports all, is free, and nothing imports it.
 */
import { dirname, relative, resolve, sep } from 'node:path';

/** The layers, lowest first. */
export const order = [
  'native',
  'tensor',
  'nn',
  'checkpoint',
  'models',
  'heads',
  'adapters',
  'systems',
  'data',
  'metrics',
  'train',
  'cli',
];

/** Layers that stand beside the ones before them: they may import only these. */
const narrower = { data: ['native', 'tensor', 'nn', 'checkpoint'], metrics: ['native', 'tensor', 'nn'] };

/**
 * The layer that a file belongs to: undefined outside `lib`, '' for a file directly in it.
 * @param {string} lib
 * @param {string} file
 * @returns {string | undefined}
 */
function layerOf(lib, file) {
  const path = relative(lib, file);
  if (path === '' || path.startsWith('..')) return undefined;
  return path.includes(sep) ? path.slice(0, path.indexOf(sep)) : '';
}

/** @type {import('eslint').Rule.RuleModule} */
export const importDirection = {
  meta: {
    type: 'problem',
    schema: [
      { type: 'object', properties: { lib: { type: 'string' } }, required: ['lib'], additionalProperties: false },
    ],
    messages: {
      upward:
        'lib/{{from}} must not import from lib/{{to}}: imports run downward only ({{order}}). Move what both need into the lower folder.',
      beside: 'lib/{{from}} must not import from lib/{{to}}: it may use only {{allowed}}.',
      whole:
        'lib/{{from}} must not import lib/index.ts, which re-exports every layer: import from the folder that has it.',
      unknown:
        'lib/{{folder}} has no place in the import order ({{order}}): add it to scripts/lint/import-direction.mjs.',
    },
  },
  create(context) {
    const { lib } = context.options[0];
    const from = layerOf(lib, context.filename);
    if (from === undefined || from === '') return {};

    /** @param {import('estree').Node & { source?: unknown }} node */
    const check = (node) => {
      const source = /** @type {{ type?: string, value?: unknown } | null | undefined} */ (node.source);
      if (source?.type !== 'Literal' || typeof source.value !== 'string' || !source.value.startsWith('.')) return;
      const to = layerOf(lib, resolve(dirname(context.filename), source.value));
      if (to === undefined || to === from) return;
      const report = (/** @type {string} */ messageId, /** @type {Record<string, string>} */ data = {}) =>
        context.report({ node, messageId, data: { from, to, order: order.join(', '), ...data } });
      if (to === '') return report('whole');
      for (const folder of [from, to]) if (!order.includes(folder)) return report('unknown', { folder });
      if (order.indexOf(to) > order.indexOf(from)) return report('upward');
      const allowed = from in narrower ? narrower[/** @type {keyof typeof narrower} */ (from)] : order;
      if (!allowed.includes(to)) report('beside', { allowed: allowed.join(', ') });
    };
    return {
      ImportDeclaration: check,
      ExportNamedDeclaration: check,
      ExportAllDeclaration: check,
      ImportExpression: check,
      // import('../x.js').Type in a type position
      TSImportType: check,
    };
  },
};
