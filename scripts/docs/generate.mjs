/**
 * `npm run docs`: writes what is made from the code: docs/models.md, docs/methods.md and the tables of the README. With
 * `--check` nothing is written; a page that is out of date ends the process with 1.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { compatibility, listFamilies, listMethods, listModels, methodInfo, modelInfo } from '../../dist/index.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const made = '<!-- Made by `npm run docs`; change the code instead. -->';

/** @param {readonly string[]} head @param {readonly (readonly string[])[]} rows */
const table = (head, rows) => [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n');

/** @param {number} n */
const count = (n) => n.toLocaleString('en-US');

function modelsPage() {
  const sections = listFamilies().map((family) => {
    const infos = listModels(family).map((name) => modelInfo(name));
    const [first] = infos;
    const rows = infos.map(({ name, parameters, macs, config, features }) => [
      `\`${name}\``,
      count(parameters),
      (macs / 1e9).toFixed(2),
      config.inputSize.slice(1).join(' x '),
      features.length > 6
        ? `${features.length} x ${features[0].channels}`
        : features.map(({ channels }) => channels).join(', '),
    ]);
    const { source, license } = first.checkpoints;
    return [
      `## ${family}`,
      `${first.paper}. Checkpoints: ${source}; license: ${license}.`,
      table(['model', 'parameters', 'GMACs', 'input', 'channels of the feature levels'], rows),
    ].join('\n\n');
  });
  const intro = [
    '# Backbones',
    made,
    'Every backbone by name, as `createModel(name)` builds it. Parameters include the classifier of the published model;',
    'GMACs are billions of multiply-accumulates of one image: convolutions, linear layers and the products of attention.',
    'No weights come with torchgraft; `loadWeights` reads the files that the named sources publish.',
  ];
  return `${[intro.slice(0, 2).join('\n\n'), intro.slice(2).join('\n'), ...sections].join('\n\n')}\n`;
}

/** Backbones that stand for the kinds there are. */
const examples = ['resnet50', 'convnext_tiny', 'vit_base_patch16_224', 'swin_tiny_patch4_window7_224'];

function methodsPage() {
  const cells = compatibility(listMethods(), examples);
  const overview = listMethods().map((id) => [
    `[${id}](#${id})`,
    methodInfo(id).summary,
    ...examples.map((model) => {
      const cell = cells.find((c) => c.method === id && c.model === model);
      return cell?.trainable == null ? '' : count(cell.trainable);
    }),
  ]);
  const sections = listMethods().map((id) => {
    const { paper, summary, options } = methodInfo(id);
    const rows = Object.entries(options).map(([key, value]) => [
      `\`${key}\``,
      value === undefined ? '' : `\`${JSON.stringify(value)}\``,
    ]);
    const list = rows.length === 0 ? 'It has no options.' : table(['option', 'default'], rows);
    return [`## ${id}`, `${summary[0].toUpperCase()}${summary.slice(1)}. ${paper}.`, list].join('\n\n');
  });
  const intro = [
    'Every method as `graft(model, id, options)` sets it in. The numbers are what each trains with its default options and a new',
    'head for 10 classes; an empty cell means that the backbone has no place for it (`torchgraft matrix` says why). What an',
    'option does stands at its declaration in `lib/adapters/` and in the types.',
  ];
  return `${['# Methods', made, intro.join('\n'), table(['method', 'what it does', ...examples], overview), ...sections].join('\n\n')}\n`;
}

/** The README with its tables made anew. */
function readmePage() {
  const text = readFileSync(join(root, 'README.md'), 'utf8');
  const [, before, after] = /^(.*<!-- tables:begin [^\n]*-->\n)(?:.*)(<!-- tables:end -->.*)$/s.exec(text) ?? [];
  if (before === undefined || after === undefined) throw new Error('README.md has lost the marks of its tables');
  const methods = listMethods().map((id) => {
    const { summary, paper } = methodInfo(id);
    return [`[\`${id}\`](docs/methods.md#${id})`, summary, paper];
  });
  const families = listFamilies().map((family) => {
    const names = listModels(family);
    const { paper } = modelInfo(names[0] ?? '');
    const shown = names.length > 3 ? [names[0], names[1], `... (${names.length})`] : names;
    return [`[${family}](docs/models.md#${family})`, shown.join(', '), paper];
  });
  const tables = [
    table(['method', 'what it does', 'published in'], methods),
    table(['family', 'backbones', 'published in'], families),
  ];
  return `${before}\n${tables.join('\n\n')}\n\n${after}`;
}

const pages = { 'docs/models.md': modelsPage, 'docs/methods.md': methodsPage, 'README.md': readmePage };
const isCheck = process.argv.includes('--check');
for (const [file, make] of Object.entries(pages)) {
  const path = join(root, file);
  const text = make();
  if (!isCheck) writeFileSync(path, text);
  else if (!existsSync(path) || readFileSync(path, 'utf8') !== text) {
    console.error(`${file} is out of date: run npm run docs`);
    process.exitCode = 1;
  }
}
