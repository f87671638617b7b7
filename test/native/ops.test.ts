import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { generatedFrom, irregularNames, methodNames, native } from '../../lib/native/index.js';
import { camelCase as runtimeCamelCase } from '../../lib/tensor/ops.js';
import { camelCase, generate, parseSchema, plainVersion, snakeCase } from '../../scripts/generate-ops.mjs';

const schemas = native.schemas().map((schema) => schema.text);
const loaded = plainVersion(native.buildInfo().torch) as string;

describe('generated signatures', () => {
  test('LibTorch reports its operators', () => expect(schemas.length).toBeGreaterThan(2000));

  test('are what the generator makes of the loaded schemas', (context) => {
    if (loaded !== generatedFrom) {
      const reason = `LibTorch ${loaded} is loaded; the signatures were generated from ${generatedFrom}`;
      console.warn(`skipped: ${reason}`);
      context.skip(reason);
    }
    const file = new URL('../../lib/native/ops.generated.ts', import.meta.url);
    expect(generate(schemas, loaded) === readFileSync(file, 'utf8'), 'run `npm run ops`').toBe(true);
  });

  test('every method exists in this LibTorch', () => {
    const missing = methodNames.split(' ').filter((name) => !native.operator(`aten::${name}`, null, true));
    if (loaded === generatedFrom) expect(missing).toEqual([]);
    else expect(missing.length).toBeLessThan(20);
  });
});

describe('names', () => {
  test.each([
    ['add_', 'add_'],
    ['log_softmax', 'logSoftmax'],
    ['_fused_adamw_', '_fusedAdamw_'],
    ['linalg__powsum', 'linalgPowsum'],
    ['upsample_bilinear2d', 'upsampleBilinear2d'],
    ['__and__', '__and__'],
    ['_foreach_add_', '_foreachAdd_'],
  ])('%s is %s', (snake, camel) => {
    expect(camelCase(snake)).toBe(camel);
    expect(runtimeCamelCase(snake)).toBe(camel);
  });

  test('every name finds its way back, by rule or by table', () => {
    const irregular = new Set(irregularNames.split(' '));
    const names = new Set(schemas.filter((s) => s.startsWith('aten::')).map((s) => parseSchema(s)?.name ?? 'add'));
    for (const name of names) {
      if (!name.startsWith('__') && !irregular.has(name) && /[A-Z]|_\d|__/.test(name)) continue;
      if (!irregular.has(name)) expect(snakeCase(camelCase(name))).toBe(name);
    }
    const camels = [...irregular].map(camelCase);
    expect(new Set(camels).size).toBe(camels.length);
  });
});

describe('parsing and generating', () => {
  const lines = (...texts: string[]) => generate(texts, '0.0.0');

  test('types of arguments and results', () => {
    const text = lines(
      'aten::one(Tensor self, SymInt[2] size, Scalar? p=None, bool keep=False, *, ScalarType? dtype=None, Device device) -> (Tensor values, Tensor? indices)',
    );
    expect(text).toContain(
      'one(this: void, self: T, size: number | readonly number[], p: Scalar | null | undefined, keep: boolean | undefined, ' +
        'options: { dtype?: DType | null | undefined; device: Device }): [values: T, indices: T | null];',
    );
    expect(text).toContain("'one'");
  });

  test('an out= form becomes an option of its twin, and only of functions', () => {
    const text = lines(
      'aten::two(Tensor self, Tensor other) -> Tensor',
      'aten::two.out(Tensor self, Tensor other, *, Tensor(a!) out) -> Tensor(a!)',
    );
    expect(text).toContain('two(this: void, self: T, other: T, options?: { out?: T | undefined }): T;');
    expect(text).toContain('  two(other: T): T;');
    expect(text.match(/ two\(/g)?.length).toBe(2);
  });

  test('what JavaScript cannot pass is left out', () => {
    const text = lines(
      'aten::a(Tensor self, Dimname dim) -> Tensor',
      'aten::b(Tensor self, *, Generator? generator) -> Tensor',
      'aten::c(Tensor self, *, Generator? generator=None) -> Tensor',
      'aten::__d__(Tensor self) -> Tensor',
      'aten::e(int[] self) -> int',
      'other::f(Tensor self) -> Tensor',
      'aten::_g(Tensor[] xs, str mode="a, b", bool? default=None) -> Tensor(a)[]',
    );
    expect([...text.matchAll(/^ {2}(\w+)\(/gm)].map((m) => m[1])).toEqual(['_g', 'c', 'c']);
    expect(text).toContain('_g(this: void, xs: readonly T[], mode?: string, default_?: boolean | null): T[];');
  });

  test('equal signatures are written once, with both schemas', () => {
    const text = lines('aten::h.int(Tensor self, int n) -> Tensor', 'aten::h.sym(Tensor self, SymInt n) -> Tensor');
    expect(text.match(/h\(this: void, self: T, n: number\): T;/g)?.length).toBe(1);
    expect(text).toContain('h.int(Tensor self, int n) -> Tensor` and `aten::h.sym');
  });

  test('schemas without sense are no operators', () => {
    expect(parseSchema('nonsense')).toBeNull();
    expect(parseSchema('aten::x(')).toBeNull();
  });
});
