/**
 * `npm run docs`: writes what is made from the code: docs/models.md, docs/methods.md and the table of the README. With
 * `--check` nothing is written; a page that is out of date ends the process with 1.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  compatibility,
  countMacs,
  createModel,
  createTextModel,
  empty,
  graft,
  listFamilies,
  listMethods,
  listModels,
  listTextModels,
  methodInfo,
  modelInfo,
  noGrad,
  scope,
  withDefaults,
} from '../../dist/index.js';
import { references } from './method-references.mjs';

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

/**
 * Sets a method into a model without a head; null if it trains nothing else.
 * @param {import('../../dist/index.js').Host} host
 * @param {string} id
 * @param {Record<string, unknown>} options
 */
function graftAlone(host, id, options) {
  try {
    return graft(host, id, options);
  } catch (error) {
    if (/nothing would be trained/.test(error.message)) return null;
    throw error;
  }
}

/**
 * What a method is on the backbone of its published figure, all on the meta device: parameters without a head, whether it
 * merges, and by how much it makes a pass longer where it does not.
 * @param {string} id
 */
function measured(id) {
  const { on, options = {}, image = on, frames = 1 } = references[id];
  return scope(() =>
    withDefaults({ device: 'meta' }, () => {
      const host = listTextModels().includes(on) ? createTextModel(on) : createModel(on, { numClasses: 0 });
      const trainable = graftAlone(host, id, options)?.summary().trainable ?? 0;
      const model = createModel(image, { numClasses: 0 }).eval();
      const [channels, ...size] = model.config.inputSize;
      const macs = (/** @type {number[]} */ shape) => noGrad(() => countMacs(() => model.run(empty(shape))).macs);
      const plain = macs([1, channels, ...size]) * frames;
      const adapter = graftAlone(model, id, image === on ? options : {});
      const grown = macs(frames > 1 ? [1, channels, frames, ...size] : [1, channels, ...size]);
      try {
        adapter?.merge();
        return { trainable, merges: true, growth: 0 };
      } catch (error) {
        if (!/cannot be merged/.test(error.message)) throw error;
        return { trainable, merges: false, growth: grown / plain - 1 };
      }
    }),
  );
}

/** The table of what is where and what it costs. */
function comparison() {
  const rows = listMethods().map((id) => {
    const { where, on, options, says = '', image } = references[id];
    const { trainable, merges, growth } = measured(id);
    const setting = Object.entries(options ?? {}).map(([key, value]) => `${key} ${value}`);
    return [
      `[${id}](#${id})`,
      where,
      [`\`${on}\``, ...setting].join(', '),
      count(trainable),
      says,
      merges ? 'yes' : 'no',
      merges ? 'none' : `${(100 * growth).toFixed(1)} %${image ? ` (\`${image}\`, defaults)` : ''}`,
    ];
  });
  return table(
    [
      'method',
      'where',
      'published figure: backbone, options',
      'parameters here',
      'published',
      'merges',
      'more work at inference',
    ],
    rows,
  );
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
  const cost = [
    'What each costs, on the backbone and with the options of a published figure where there is one (default options else),',
    'without the head. What merges costs nothing at inference; the others take so many more multiply-accumulates for an image.',
  ];
  const choice = [
    'For a first try: `conv_adapter` on convolutional backbones, `lora` on transformers, `ssf` where inference must stay as fast',
    'as it is, `fact` or `kadaptation` where the file must be small, `st_adapter` for video, `linear_probe` as the yardstick.',
    '[Choosing a method](choosing-a-method.md) says why, and what to turn when it does not learn.',
  ];
  const page = [
    '# Methods',
    made,
    choice.join('\n'),
    intro.join('\n'),
    table(['method', 'what it does', ...examples], overview),
    '## What they cost',
    cost.join('\n'),
    comparison(),
    ...sections,
  ];
  return `${page.join('\n\n')}\n`;
}

/**
 * The systems of the README: name, folder of golden cases, where it is, and its paper where the code does not say it.
 * @type {readonly (readonly [name: string, cases: string, where: string, paper?: string])[]}
 */
const systems = [
  ['Conv-Adapter', 'conv_adapter', 'method conv_adapter'],
  ['VPT', 'vpt', 'method vpt'],
  ['SSF', 'ssf', 'method ssf'],
  ['Convpass', 'convpass', 'method convpass'],
  ['FacT', 'fact', 'method fact'],
  ['KAdaptation', 'kadaptation', 'method kadaptation'],
  ['KronA', 'krona', 'method krona'],
  ['Unified view, MAM adapter', 'unified', 'method mam'],
  ['Pro-tuning', 'pro_tuning', 'method pro_tuning'],
  ['ST-Adapter', 'st_adapter', 'method st_adapter'],
  ['SPM', 'spm', 'method spm'],
  ['DenseCLIP', 'dense_clip', 'head dense_clip', 'Rao et al., DenseCLIP, CVPR 2022, arXiv 2112.01518'],
  [
    'LV-Adapter',
    'lv_adapter',
    'head lv_adapter',
    'Liang et al., Effective Adaptation in Multi-Task Co-Training for Unified Autonomous Driving, NeurIPS 2022, arXiv 2209.08953',
  ],
  [
    'Representation Separation',
    'representation_separation',
    'head representation_separation',
    'Hong et al., Representation Separation for Semantic Segmentation with Vision Transformers, 2022, arXiv 2212.13764',
  ],
  ['ConvNeXt', 'convnext', 'family convnext'],
  ['HorNet', 'hornet', 'family hornet'],
  ['GhostNet', 'ghostnet', 'family ghostnet'],
  ['RevCol', 'revcol', 'family revcol'],
  ['InternImage', 'internimage', 'family internimage'],
  ['HAT-Net', 'hatnet', 'family hatnet'],
];

/** Systems without public code, of whose papers no more than the abstract could be read: no figure of theirs is claimed. */
const reconstructed = ['lv_adapter', 'representation_separation', 'spm'];

/**
 * What a system's golden cases were computed with.
 * @param {string} folder
 */
function checked(folder) {
  const cases = join(root, 'test', 'golden', 'cases', folder);
  const all = readdirSync(cases, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => JSON.parse(readFileSync(join(cases, entry.name, 'case.json'), 'utf8')));
  if (reconstructed.includes(folder)) return `our own reading of the abstract (${all.length})`;
  const names = { official: 'the official code', library: 'other libraries', paper: "the paper's formulas" };
  const parts = Object.entries(names).flatMap(([kind, name]) => {
    const count = all.filter(({ source }) => source.kind === kind).length;
    return count === 0 ? [] : [`${name} (${count})`];
  });
  return parts.join(', ');
}

/** The README with its table made anew. */
function readmePage() {
  const text = readFileSync(join(root, 'README.md'), 'utf8');
  const [, before, after] = /^(.*<!-- tables:begin [^\n]*-->\n)(?:.*)(<!-- tables:end -->.*)$/s.exec(text) ?? [];
  if (before === undefined || after === undefined) throw new Error('README.md has lost the marks of its tables');
  const rows = systems.map(([name, cases, where, paper]) => {
    const [kind, id] = where.split(' ');
    if (kind === 'method') return [name, `[\`${id}\`](docs/methods.md#${id})`, methodInfo(id).paper, checked(cases)];
    if (kind === 'head') return [name, `[\`--head ${id}\`](docs/dense-and-video.md#systems)`, paper, checked(cases)];
    const info = modelInfo(listModels(id)[0] ?? '');
    return [name, `[\`${id}\`](docs/models.md#${id})`, info.paper, checked(cases)];
  });
  return `${before}\n${table(['system', 'where', 'published in', 'checked, cases'], rows)}\n\n${after}`;
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
