/**
 * Writes lib/native/ops.generated.ts: TypeScript signatures of every ATen operator, made from the schemas that the
 * loaded LibTorch reports. Run with `npm run ops` after a build; test/native/ops.test.ts regenerates and compares.
 */
import { writeFileSync } from 'node:fs';
import { fileURLToPath, pathToFileURL } from 'node:url';

/** Methods that lib/tensor/tensor.ts writes by hand; everything else comes from the schemas. */
const HAND_WRITTEN = new Set(
  (
    'backward cpu cuda data dim dtype device grad index is_leaf is_contiguous item numel ndim output_nr requires_grad_ ' +
    'requires_grad retain_grad retains_grad set_data shape size stride sym_size sym_stride sym_numel to tolist where'
  ).split(' '),
);

/** `add_` stays, `log_softmax` becomes `logSoftmax`, `_fused_adamw_` becomes `_fusedAdamw_`. */
export function camelCase(name) {
  return name.replace(/(?<=[^_])_+([^_])/g, (_, letter) => letter.toUpperCase());
}

/** What lib/tensor/ops.ts does to find the operator again; names for which this fails go into a table. */
export function snakeCase(name) {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Splits at commas outside of brackets and quotes. */
function splitTop(text) {
  const parts = [];
  let depth = 0;
  let quoted = false;
  let start = 0;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (c === '"') quoted = !quoted;
    else if (quoted) continue;
    else if (c === '(' || c === '[') depth++;
    else if (c === ')' || c === ']') depth--;
    else if (c === ',' && depth === 0) {
      parts.push(text.slice(start, i).trim());
      start = i + 1;
    }
  }
  const last = text.slice(start).trim();
  return last === '' ? parts : [...parts, last];
}

/** Type and name of one argument or result; alias annotations such as `(a!)` are dropped, but remembered. */
function parseArgument(text) {
  const [declaration, ...rest] = text.split('=');
  const mutable = /\([^)]*!\)/.test(declaration);
  const match = /^(\S+)(?:\s+(\S+))?$/.exec(declaration.replace(/\([^)]*\)/g, '').trim());
  if (!match) return null;
  return { type: match[1], name: match[2] ?? '', defaultValue: rest.length ? rest.join('=') : null, mutable };
}

/** Parses `ns::name.overload(arguments) -> results`; null when it has a type that JavaScript cannot give or take. */
export function parseSchema(text) {
  const match = /^(\w+)::([\w]+)(?:\.(\w+))?\((.*)\) -> (.*)$/.exec(text);
  if (!match) return null;
  const [, namespace, name, overload = '', argumentText, returnText] = match;
  const positional = [];
  const keyword = [];
  let into = positional;
  for (const part of splitTop(argumentText)) {
    if (part === '*') into = keyword;
    else into.push(parseArgument(part));
  }
  const inner = returnText.startsWith('(') && returnText.endsWith(')') ? returnText.slice(1, -1) : returnText;
  const returns = splitTop(inner).map(parseArgument);
  if ([...positional, ...keyword, ...returns].includes(null)) return null;
  return { namespace, name, overload, positional, keyword, returns, text };
}

const BASE_TYPES = new Map([
  ['Tensor', 'T'],
  ['Scalar', 'Scalar'],
  ['int', 'number'],
  ['SymInt', 'number'],
  ['SymBool', 'boolean'],
  ['float', 'number'],
  ['bool', 'boolean'],
  ['str', 'string'],
  ['ScalarType', 'DType'],
  ['Device', 'Device'],
  ['Layout', 'Layout'],
  ['MemoryFormat', 'MemoryFormat'],
]);

/** TypeScript's spelling of a schema type; null when there is none. */
function tsType(type, isResult) {
  const optional = /^(.*)\?$/.exec(type);
  if (optional) {
    const inner = tsType(optional[1], isResult);
    return inner && `${inner} | null`;
  }
  const list = /^(.*)\[(\d*)\]$/.exec(type);
  if (list) {
    const inner = tsType(list[1], isResult);
    if (!inner) return null;
    const array = `${isResult ? '' : 'readonly '}${inner.includes('|') ? `(${inner})` : inner}[]`;
    // `int[2]` takes a single number for both.
    return list[2] !== '' && !isResult && /^(SymInt|int|float)$/.test(list[1]) ? `${inner} | ${array}` : array;
  }
  return BASE_TYPES.get(type) ?? null;
}

const RESERVED = new Set('default delete function in new var with this return class else end'.split(' '));

function parameterName(name) {
  const camel = camelCase(name);
  return RESERVED.has(camel) ? `${camel}_` : camel;
}

/** One overload as a signature, or null when it cannot be offered. `outs` are optional results to write into. */
function signature(schema, { method, outs }) {
  const positional = method ? schema.positional.slice(1) : schema.positional;
  // A function of the namespace needs no receiver, so it may be taken out of it.
  const parts = method ? [] : ['this: void'];
  // TypeScript allows no required parameter after an optional one; before those, a default is asked for by undefined.
  const needsOptions = schema.keyword.some((a) => a.defaultValue === null && !a.type.startsWith('Generator'));
  let lastRequired = needsOptions ? positional.length : -1;
  positional.forEach((argument, i) => {
    if (argument.defaultValue === null) lastRequired = Math.max(lastRequired, i);
  });
  for (const [i, argument] of positional.entries()) {
    const type = tsType(argument.type, false);
    if (!type) return null;
    const skippable = i < lastRequired && argument.defaultValue !== null;
    parts.push(
      `${parameterName(argument.name)}${i > lastRequired ? '?' : ''}: ${type}${skippable ? ' | undefined' : ''}`,
    );
  }
  const options = [];
  let required = false;
  for (const argument of schema.keyword) {
    if (argument.type.startsWith('Generator')) {
      // There is one generator per device, seeded by manualSeed(); overloads that demand another have a twin without.
      if (argument.defaultValue === null) return null;
      continue;
    }
    const type = tsType(argument.type, false);
    if (!type) return null;
    const optional = argument.defaultValue !== null;
    required ||= !optional;
    options.push(`${camelCase(argument.name)}${optional ? '?' : ''}: ${type}${optional ? ' | undefined' : ''}`);
  }
  if (!method) for (const out of outs) options.push(`${camelCase(out)}?: T | undefined`);
  if (options.length) parts.push(`options${required ? '' : '?'}: { ${options.join('; ')} }`);
  const results = schema.returns.map((r) => tsType(r.type, true));
  if (results.includes(null)) return null;
  const named = schema.returns.every((r) => r.name !== '');
  const tuple = () =>
    `[${results.map((t, i) => (named ? `${parameterName(schema.returns[i].name)}: ${t}` : t)).join(', ')}]`;
  const result = results.length === 0 ? 'void' : results.length === 1 ? results[0] : tuple();
  return `(${parts.join(', ')}): ${result}`;
}

const isOut = (schema) => schema.keyword.some((a) => a.mutable);

/** Arguments without those written into, as text: the same for an operator and its out= form. */
const inputsOf = (schema) =>
  JSON.stringify(
    [schema.positional, schema.keyword.filter((a) => !a.mutable)].map((l) => l.map((a) => [a.type, a.name])),
  );

/** Signature -> schema texts, for all overloads of one operator. */
function signaturesOf(overloads, method) {
  const lines = new Map();
  const plain = overloads.filter((s) => !isOut(s));
  const add = (schema, outs, texts) => {
    const line = signature(schema, { method, outs });
    if (line) lines.set(line, [...(lines.get(line) ?? []), ...texts]);
  };
  for (const schema of plain) {
    // The out= form of the same arguments becomes an option of this signature.
    const twin = overloads.find((s) => isOut(s) && inputsOf(s) === inputsOf(schema));
    const outs = twin ? twin.keyword.filter((a) => a.mutable) : [];
    const foldable = outs.every((a) => a.type === 'Tensor');
    add(schema, foldable ? outs.map((a) => a.name) : [], [schema.text]);
  }
  if (!method) {
    for (const schema of overloads) {
      const folded = plain.some((s) => inputsOf(s) === inputsOf(schema));
      if (isOut(schema) && !(folded && schema.keyword.every((a) => !a.mutable || a.type === 'Tensor')))
        add(schema, [], [schema.text]);
    }
  }
  return lines;
}

function interfaceText(name, comment, operators, method) {
  const body = [];
  for (const [operator, overloads] of operators) {
    for (const [line, texts] of signaturesOf(overloads, method)) {
      body.push(`  /** \`${texts.join('` and `')}\` */`, `  ${camelCase(operator)}${line};`);
    }
  }
  return `/** ${comment} */\nexport interface ${name}<T> {\n${body.join('\n')}\n}\n`;
}

/** A string array as lines of at most 120 columns. */
function wordList(name, comment, words) {
  const lines = [];
  for (const word of words) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + word.length < 108) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  const text = lines.map((line, i) => `  '${line}${i < lines.length - 1 ? ' ' : ''}'`).join(' +\n');
  return `/** ${comment} */\nexport const ${name}: string =\n${text};\n`;
}

/**
 * The text of lib/native/ops.generated.ts.
 * @param schemaTexts schemas as LibTorch prints them
 * @param version LibTorch's version, without its build suffix
 */
export function generate(schemaTexts, version) {
  const operators = new Map();
  for (const text of [...new Set(schemaTexts)].sort()) {
    if (!text.startsWith('aten::') || text.includes('*/')) continue;
    const schema = parseSchema(text);
    if (!schema || schema.name.startsWith('__')) continue;
    const takesTensor = [...schema.positional, ...schema.keyword].some((a) => a.type.startsWith('Tensor'));
    const givesTensor = schema.returns.some((r) => r.type.startsWith('Tensor'));
    if (!takesTensor && !givesTensor) continue;
    const list = operators.get(schema.name) ?? [];
    operators.set(schema.name, [...list, schema]);
  }
  const functions = [...operators].filter(([, overloads]) => signaturesOf(overloads, false).size > 0);
  const methods = functions
    .filter(([name]) => !name.startsWith('_') && !HAND_WRITTEN.has(name))
    .map(([name, overloads]) => [
      name,
      overloads.filter((s) => s.positional[0]?.name === 'self' && s.positional[0].type === 'Tensor'),
    ])
    .filter(([, overloads]) => signaturesOf(overloads, true).size > 0);
  const irregular = functions.map(([name]) => name).filter((name) => snakeCase(camelCase(name)) !== name);
  return [
    '// Generated by scripts/generate-ops.mjs; do not edit.',
    "import type { Device, DType, Layout, MemoryFormat, Scalar } from './names.js';",
    '',
    '/** LibTorch whose schemas these signatures were made from. */',
    `export const generatedFrom = '${version}';`,
    '',
    wordList(
      'methodNames',
      'Operators that are methods of Tensor, separated by spaces.',
      methods.map(([name]) => name),
    ),
    wordList(
      'irregularNames',
      'Operators whose names cannot be told from their camelCase form, separated by spaces.',
      irregular,
    ),
    interfaceText('AtenFunctions', 'Every ATen operator as a function.', functions, false),
    interfaceText('TensorMethods', 'Operators whose first argument is the tensor itself.', methods, true),
  ].join('\n');
}

/** `2.13.0+cpu` and `2.13.0` are the same schemas. */
export const plainVersion = (version) => version.replace(/[+a].*$/, '');

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { native } = await import('../dist/native/addon.js');
  const target = fileURLToPath(new URL('../lib/native/ops.generated.ts', import.meta.url));
  const texts = native.schemas().map((schema) => schema.text);
  if (texts.length === 0) throw new Error('generate-ops: LibTorch reported no schemas');
  writeFileSync(target, generate(texts, plainVersion(native.buildInfo().torch)));
  console.log(`${target}: from ${texts.length} schemas`);
}
