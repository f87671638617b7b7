/**
 * Compact storage of adapters: the raw `*.bin` files of the quantized adapters of Jie, Wang & Deng, ICCV 2023, arXiv
 * 2307.16867 (official code JieShibo/PETL-ViT, folder binary_adapter), with the YAML file that says what they hold. An
 * adapter with a binary head of 100 classes on ViT-B/16 takes 16 kilobytes.
 */
import { readFileSync } from 'node:fs';
import type * as Yaml from 'yaml';
import { z } from 'zod';
import { requirePath, writeAtomically } from '../checkpoint/index.js';
import { requirePackage } from '../native/packages.js';
import type { Host } from '../models/index.js';
import { codebook, quantize, QUANTIZED_BITS, type QuantizedBits } from '../nn/index.js';
import { scope, type Tensor, tensor, zeros } from '../tensor/index.js';
import { adaptformer } from './adaptformer.js';
import { type Adapter, graftMethod, type GraftOptions } from './core/index.js';
import { lora } from './lora.js';

const yaml = (): typeof Yaml => requirePackage('yaml') as typeof Yaml;

const METHODS = ['adaptformer', 'adaptformer-bihead', 'lora', 'lora-bihead'] as const;

const settingsSchema = z.object({
  backbone: z.string(),
  bit: z.literal(QUANTIZED_BITS),
  dataset: z.string(),
  /** Width h of the bottleneck, or rank r. */
  dim: z.int().positive(),
  method: z.enum(METHODS),
  num_class: z.int().positive(),
  scale: z.number(),
});

/** The side file: sizes and scale stand nowhere else. */
export type CompactSettings = z.output<typeof settingsSchema>;

/** One matrix or vector of a file. */
export interface CompactPart {
  /** Official name, such as `blocks.0.adapter_mlp.adapter_down.weight`. */
  readonly name: string;
  readonly shape: readonly number[];
  /** 32: plain float32 numbers. */
  readonly bits: QuantizedBits | 32;
}

/** The sizes of a transformer that a file's layout depends on. */
export interface CompactSizes {
  /** Width of the tokens. */
  readonly width: number;
  /** Number of blocks. */
  readonly depth: number;
}

const LAYERS = {
  adaptformer: ['adapter_mlp'],
  lora: ['attn.lora_q', 'attn.lora_v'],
} as const satisfies Record<string, readonly string[]>;

const isBinaryHead = ({ method }: Pick<CompactSettings, 'method'>): boolean => method.endsWith('-bihead');

const baseMethod = ({ method }: Pick<CompactSettings, 'method'>): 'adaptformer' | 'lora' =>
  method.startsWith('lora') ? 'lora' : 'adaptformer';

/** What a file holds, in its order: the quantized layers block by block, then the head. */
export function compactLayout(settings: CompactSettings, { width, depth }: CompactSizes): CompactPart[] {
  const { bit: bits, dim, num_class: classes } = settings;
  const parts: CompactPart[] = [];
  for (let block = 0; block < depth; block++) {
    for (const layer of LAYERS[baseMethod(settings)]) {
      const prefix = `blocks.${block}.${layer}`;
      parts.push({ name: `${prefix}.adapter_down.weight`, shape: [dim, width], bits });
      parts.push({ name: `${prefix}.adapter_up.weight`, shape: [width, dim], bits });
    }
  }
  parts.push({ name: 'head.weight', shape: [classes, width], bits: isBinaryHead(settings) ? 1 : 32 });
  if (!isBinaryHead(settings)) parts.push({ name: 'head.bias', shape: [classes], bits: 32 });
  return parts;
}

const count = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);

/** Bytes of a part. @throws RangeError when its codes do not fill whole bytes */
function bytesOf({ name, shape, bits }: CompactPart): number {
  const size = count(shape);
  if (bits === 32) return 4 * size;
  if ((size * bits) % 8 !== 0) {
    throw new RangeError(
      `${name} [${shape.join(', ')}] has ${size} elements, and at ${bits} bits they do not fill whole bytes; ` +
        `take a size that is a multiple of ${8 / bits}`,
    );
  }
  return (size * bits) / 8 + 8;
}

/** Codes of `bits` bits in bytes, the first in the lowest bits. */
function pack(codes: ArrayLike<number | bigint>, bits: number): Uint8Array {
  const perByte = 8 / bits;
  return Uint8Array.from({ length: codes.length / perByte }, (_, i) => {
    let byte = 0;
    for (let k = 0; k < perByte; k++) byte |= Number(codes[i * perByte + k]) << (k * bits);
    return byte;
  });
}

/** The inverse of `pack`. */
function unpack(bytes: Uint8Array, bits: number): Uint8Array {
  const perByte = 8 / bits;
  const mask = 2 ** bits - 1;
  return Uint8Array.from({ length: bytes.length * perByte }, (_, i) => {
    return ((bytes[Math.floor(i / perByte)] ?? 0) >> ((i % perByte) * bits)) & mask;
  });
}

/**
 * The bytes of a compact file.
 *
 * @param state latent weights by official name
 * @throws Error for a missing name; RangeError for a shape that the layout does not have
 */
export function encodeCompact(state: ReadonlyMap<string, Tensor>, layout: readonly CompactPart[]): Uint8Array {
  const bytes = new Uint8Array(layout.reduce((sum, part) => sum + bytesOf(part), 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const { name, shape, bits } of layout) {
    const value = state.get(name);
    if (!value) throw new Error(`a compact file needs ${name}, and the adapter has none`);
    if (value.shape.join() !== shape.join()) {
      throw new RangeError(
        `${name} is [${value.shape.join(', ')}], and the file's layout expects [${shape.join(', ')}]`,
      );
    }
    scope(() => {
      const weight = value.detach().to({ device: 'cpu', dtype: 'float32' }).contiguous();
      if (bits === 32) {
        for (const number of weight.data() as Float32Array) view.setFloat32((at += 4) - 4, number, true);
        return;
      }
      const { codes, mean, deviation } = quantize(weight, bits);
      const packed = pack(codes.flatten().data(), bits);
      bytes.set(packed, at);
      at += packed.length;
      for (const number of [mean, deviation]) view.setFloat32((at += 4) - 4, Number(number.item()), true);
    });
  }
  return bytes;
}

/**
 * The weights that a compact file stands for, float32: v[index] σ + μ for quantized layers, to be used in ordinary ones.
 *
 * @throws RangeError unless the file has exactly the length that the layout asks for
 */
export function decodeCompact(bytes: Uint8Array, layout: readonly CompactPart[]): Map<string, Tensor> {
  const expected = layout.reduce((sum, part) => sum + bytesOf(part), 0);
  if (bytes.length !== expected) {
    throw new RangeError(
      `the compact file has ${bytes.length} bytes, its settings ask for ${expected}; they are of another adapter or backbone`,
    );
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const next = (): number => view.getFloat32((at += 4) - 4, true);
  return new Map(
    layout.map((part): [string, Tensor] => {
      const { name, shape, bits } = part;
      const numbers = new Float32Array(count(shape));
      if (bits === 32) {
        for (let i = 0; i < numbers.length; i++) numbers[i] = next();
      } else {
        const indices = unpack(bytes.subarray(at, (at += (numbers.length * bits) / 8)), bits);
        const [mean, deviation] = [next(), next()];
        const levels = Float32Array.from(codebook(bits).values, (v) => Math.fround(v * deviation) + mean);
        indices.forEach((index, i) => (numbers[i] = levels[index] ?? NaN));
      }
      return [name, tensor(numbers, { shape: [...shape], dtype: 'float32', device: 'cpu' })];
    }),
  );
}

/** Reads a side file. @throws RangeError that names what is missing or wrong */
export function readCompactSettings(path: string): CompactSettings {
  requirePath(path);
  const parsed = settingsSchema.safeParse(yaml().parse(readFileSync(path, 'utf8')));
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new RangeError(`${path}: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'is no side file'}`);
}

/** Width and depth of a vision transformer as its sites say them. */
function sizesOf(model: Host): CompactSizes {
  const blocks = model.sites().filter(({ roles }) => roles.includes('block'));
  const [width = 0, ...others] = new Set(blocks.map((block) => block.in));
  if (width === 0 || others.length > 0) {
    throw new RangeError(`${model.name}: compact files are for transformers whose blocks have one width`);
  }
  return { width, depth: blocks.length };
}

/** The settings that a quantized adapter's own options mean. @throws RangeError for an adapter that has no compact form */
function settingsOf(adapter: Adapter, dataset: string): CompactSettings {
  const { method, model, options, head } = adapter;
  const bits = options['bits'];
  const isKnown = method.id === 'adaptformer' || method.id === 'lora';
  if (!isKnown || typeof bits !== 'number' || bits === 32) {
    throw new RangeError(
      `adapter '${adapter.name}' (${method.id}) has no compact form; make it with adaptformer or lora and the option bits`,
    );
  }
  const binary = typeof head === 'object' && head.bits !== undefined && head.bits !== 32;
  const weight = adapter.officialState().get('head.weight');
  if (!weight || (binary && head.bits !== 1)) {
    throw new RangeError('a compact file holds a head of 32 bits or of 1 bit; give the adapter such a head');
  }
  const dim = Number(options[method.id === 'lora' ? 'rank' : 'hidden']);
  const scale = method.id === 'lora' ? Number(options['alpha'] ?? dim) / dim : options['scale'];
  return settingsSchema.parse({
    ...{ backbone: model.name, bit: bits, dataset, dim, num_class: weight.shape[0], scale },
    method: `${method.id}${binary ? '-bihead' : ''}`,
  });
}

const sidePath = (path: string): string => `${path.replace(/\.bin$/, '')}.yaml`;

/**
 * Writes a quantized adapter (`adaptformer` or `lora` with the option `bits`) as a compact file, and its side file with
 * the ending `.yaml` beside it.
 *
 * @param path of the file, ending in `.bin`
 * @param options `dataset`: what the side file calls the data. Default ''
 */
export function saveCompact(adapter: Adapter, path: string, { dataset = '' }: { dataset?: string } = {}): void {
  const settings = settingsOf(adapter, dataset);
  const bytes = encodeCompact(adapter.officialState(), compactLayout(settings, sizesOf(adapter.model)));
  writeAtomically(path, (sink) => sink.write(bytes));
  writeAtomically(sidePath(path), (sink) => sink.write(Buffer.from(yaml().stringify(settings))));
}

/**
 * Sets the adapter of a compact file into a model, with the file's head. The weights are the decoded ones in ordinary
 * layers: to be used, not to be trained on as a quantized adapter.
 *
 * @param settings of the side file. Default: read from the file with the ending `.yaml` beside it
 * @throws RangeError when the file does not have the length that settings and model ask for
 */
export function loadCompact(
  model: Host,
  path: string,
  settings: CompactSettings = readCompactSettings(sidePath(path)),
  { name = 'default' }: Pick<GraftOptions, 'name'> = {},
): Adapter {
  requirePath(path);
  const state = decodeCompact(readFileSync(path), compactLayout(settings, sizesOf(model)));
  const { dim, scale, num_class: classes } = settings;
  if (isBinaryHead(settings)) state.set('head.bias', zeros([classes]));
  const head = { classes };
  const adapter =
    baseMethod(settings) === 'lora'
      ? graftMethod(
          model,
          lora,
          { rank: dim, alpha: scale * dim, dropoutAt: 'rank', at: { role: ['q', 'v'] } },
          { name, head },
        )
      : graftMethod(model, adaptformer, { hidden: dim, scale, bias: false }, { name, head });
  return adapter.loadOfficialState(state);
}
