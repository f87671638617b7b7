import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { graft } from '../../lib/adapters/index.js';
import {
  type Clip,
  ClipTokenizer,
  createClip,
  createCustomClip,
  createCustomModel,
  listClips,
  loadState,
} from '../../lib/models/index.js';
import { manualSeed, noGrad, randn, type Tensor, tensor, withDefaults, zeros } from '../../lib/tensor/index.js';

const vit = { imgSize: 16, patchSize: 4, embedDim: 24, depth: 2, numHeads: 3, projDim: 12 };
const text = { contextLength: 7, vocabSize: 30, width: 16, heads: 2, layers: 2, embedDim: 12 };
const resnet = { layers: [1, 1], width: 8, heads: 4, outputDim: 12, imgSize: 32 };

const withViT = (): Clip => createCustomClip({ visualKind: 'vit', visual: vit, text }).eval();
const withResNet = (): Clip => createCustomClip({ visualKind: 'resnet', visual: resnet, text }).eval();
const ids = (): Tensor => tensor([4, 9, 29, 0, 0, 3, 29, 0, 0, 0], { dtype: 'int64' }).reshape([2, 5]);

/** The tower of images alone, from the part of a state dict that belongs to it. */
function towerPart(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  const own = [...state].filter(([name]) => name.startsWith('visual.'));
  return new Map(own.map(([name, value]) => [name.slice('visual.'.length), value]));
}

describe('formats', () => {
  test.each([
    ['openai', 'visual.transformer.resblocks.1.attn.in_proj_weight', [72, 24]],
    ['openai', 'visual.proj', [24, 12]],
    ['openai', 'transformer.resblocks.0.mlp.c_fc.bias', [64]],
    ['transformers', 'vision_model.encoder.layers.1.self_attn.k_proj.weight', [24, 24]],
    ['transformers', 'vision_model.pre_layrnorm.weight', [24]],
    ['transformers', 'text_model.embeddings.position_embedding.weight', [7, 16]],
  ] as const)('%s files hold %s, and load again', (format, name, shape) => {
    manualSeed(0);
    const [a, b] = [withViT(), withViT()];
    const official = a.officialState(format);
    expect(official.get(name)?.shape).toEqual(shape);
    loadState(b, official);
    const x = randn([2, 3, 16, 16]);
    expect(b.logits(x, ids()).perImage.equal(a.logits(x, ids()).perImage)).toBe(true);
  });

  test('settings and indices that stand beside the weights are left out', () => {
    const [a, b] = [withViT(), withViT()];
    const official = a.officialState('openai').set('input_resolution', tensor(16)).set('vocab_size', tensor(30));
    expect(loadState(b, official).unexpected).toEqual([]);
    const other = a.officialState('transformers').set('text_model.embeddings.position_ids', zeros([1, 7]));
    expect(loadState(b, other).unexpected).toEqual([]);
  });

  test('a residual network goes by the names of OpenAI, and of no transformers', () => {
    const [a, b] = [withResNet(), withResNet()];
    const official = a.officialState('openai');
    expect(official.get('visual.attnpool.c_proj.weight')?.shape).toEqual([12, 64]);
    loadState(b, official);
    const x = randn([1, 3, 32, 32]);
    expect(b.encodeImage(x).equal(a.encodeImage(x))).toBe(true);
    expect(() => a.officialState('transformers')).toThrow(/openai/);
  });

  test('its own names are told from those of OpenAI, which are partly the same', () => {
    const [a, b] = [withResNet(), withResNet()];
    loadState(b, a.stateDict());
    expect(b.encodeText(ids()).equal(a.encodeText(ids()))).toBe(true);
  });

  test.each([
    ['a whole archive of OpenAI', (clip: Clip) => clip.officialState('openai')],
    ['a whole CLIPModel of transformers', (clip: Clip) => clip.officialState('transformers')],
    ["OpenAI's tower alone", (clip: Clip) => towerPart(clip.officialState('openai'))],
    ['our own names', (clip: Clip) => clip.visual.stateDict()],
    [
      "timm's, where the projection is a classifier",
      (clip: Clip) => {
        const state = clip.visual.stateDict();
        state.set('head.weight', state.get('proj.weight') as Tensor).set('head.bias', zeros([12]));
        state.delete('proj.weight');
        return state;
      },
    ],
  ])('the image transformer loads from %s', (_, files) => {
    const clip = withViT();
    const tower = createCustomModel('clip_vit', vit).eval();
    loadState(tower, files(clip));
    const x = randn([2, 3, 16, 16]);
    expect(tower.run(x).equal(clip.encodeImage(x))).toBe(true);
  });

  test("the residual network loads from timm's names", () => {
    const a = createCustomModel('clip_resnet', resnet).eval();
    const names: readonly (readonly [RegExp, string])[] = [
      [/^(conv|bn)(\d)\./, 'stem.conv$2.$1.'],
      [/^layer(\d)\.(\d)\.(conv|bn)1\./, 'stages.$1.$2.conv1_1x1.$3.'],
      [/^layer(\d)\.(\d)\.(conv|bn)2\./, 'stages.$1.$2.conv2_kxk.$3.'],
      [/^layer(\d)\.(\d)\.(conv|bn)3\./, 'stages.$1.$2.conv3_1x1.$3.'],
      [/^layer(\d)\.(\d)\.downsample\.0/, 'stages.$1.$2.shortcut.conv.conv'],
      [/^layer(\d)\.(\d)\.downsample\.1/, 'stages.$1.$2.shortcut.conv.bn'],
      [/^attnpool\.positional_embedding/, 'head.pos_embed'],
      [/^attnpool\.c_proj/, 'head.proj'],
      [/^attnpool\.([qkv])_proj/, 'head.$1'],
    ];
    const timm = new Map(
      Array.from(a.stateDict(), ([name, value]) => {
        const [from, to] = names.find(([pattern]) => pattern.test(name)) ?? [/^$/, ''];
        const renamed = name.replace(from, to).replace(/stages\.(\d)/, (_, n: string) => `stages.${Number(n) - 1}`);
        return [renamed, value];
      }),
    );
    const b = createCustomModel('clip_resnet', resnet).eval();
    loadState(b, timm);
    const x = randn([1, 3, 32, 32]);
    expect(b.run(x).equal(a.run(x))).toBe(true);
  });

  test('positions are resampled to the size of the images, with a row kept for the mean', () => {
    const small = createCustomModel('clip_resnet', resnet);
    const large = createCustomModel('clip_resnet', { ...resnet, imgSize: 64 });
    const report = loadState(large, small.stateDict());
    expect(report.resampled).toEqual(['attnpool.positional_embedding']);
    const [before, after] = [small, large].map((m) => m.stateDict().get('attnpool.positional_embedding') as Tensor);
    expect(after?.shape).toEqual([65, 64]);
    expect(after?.select(0, 0).equal(before?.select(0, 0) as Tensor)).toBe(true);
  });
});

describe('both towers', () => {
  test('similarities are cosines times the scale', () => {
    const clip = withViT();
    const [images, texts] = [randn([2, 12]), randn([3, 12])];
    const { perImage, perText } = clip.similarity(images, texts);
    const [a, b] = [images.select(0, 1), texts.select(0, 2)];
    const cosine = Number(a.dot(b).item()) / (Number(a.norm().item()) * Number(b.norm().item()));
    expect(Number(perImage.index(1, 2).item())).toBeCloseTo(cosine / 0.07, 3);
    expect(perText.shape).toEqual([3, 2]);
  });

  test('a text is read at its end, whatever follows, and words see only those before them', () => {
    const clip = withViT();
    const padded = tensor([4, 9, 29, 7, 8], { dtype: 'int64' }).reshape([1, 5]);
    const difference = clip.encodeText(padded).sub(clip.encodeText(ids()).narrow(0, 0, 1));
    expect(Number(difference.abs().max().item())).toBeLessThan(1e-5);
    expect(() => clip.encodeText(zeros([1, 8], { dtype: 'int64' }))).toThrow(/context of 7/);
  });

  test('adapters reach both towers, and the start is the backbone', () => {
    const clip = withViT();
    const before = noGrad(() => clip.logits(randnFixed(), ids()).perImage);
    const adapter = graft(clip, 'lora', { rank: 2 });
    const paths = adapter.grafts.map(({ site }) => site.path);
    expect(paths).toContain('visual.blocks.0.attn.qkv[q]');
    expect(paths).toContain('text.blocks.1.attn.qkv[v]');
    expect(noGrad(() => clip.logits(randnFixed(), ids()).perImage).equal(before)).toBe(true);
  });

  test('towers that end in different spaces are refused', () => {
    const other = { visualKind: 'vit' as const, visual: vit, text: { ...text, embedDim: 8 } };
    expect(() => createCustomClip(other)).toThrow(/vectors of 12 and texts of 8/);
    expect(() => createClip('ViT-B/23')).toThrow(/did you mean ViT-B\/32/);
    expect(() => createCustomClip({ ...other, visual: { ...vit, patches: 2 } })).toThrow(/unknown option 'patches'/);
  });

  test.each(listClips())('%s can be built without memory', (name) => {
    const clip = withDefaults({ device: 'meta' }, () => createClip(name));
    expect(clip.visual.numFeatures).toBe(clip.text.options.embedDim);
  });
});

function randnFixed(): Tensor {
  manualSeed(3);
  return randn([2, 3, 16, 16]);
}

describe('tokenizer', () => {
  const tokenizer = new ClipTokenizer(['t h', 'th e</w>', 'c a', 'ca t</w>']);

  test('joins pairs by rank, ends words, and surrounds the text', () => {
    const [the, cat] = [512 + 1, 512 + 3];
    expect(tokenizer.vocabSize).toBe(518);
    expect(tokenizer.encode(' The  CAT ')).toEqual([the, cat]);
    expect(tokenizer.tokenize('the cat', { contextLength: 5 }).tolist()).toEqual([[516, the, cat, 517, 0]]);
    expect(tokenizer.tokenize(['the cat the'], { contextLength: 4, truncate: true }).tolist()).toEqual([
      [516, the, cat, 517],
    ]);
    expect(tokenizer.decode([the, cat])).toBe('the cat ');
  });

  test('refuses what does not fit', () => {
    expect(() => tokenizer.tokenize('the cat the', { contextLength: 4 })).toThrow(/5 tokens long and the context 4/);
    expect(() => tokenizer.tokenize('the', { contextLength: 1 })).toThrow(/at least 2/);
    expect(() => tokenizer.decode([518])).toThrow(/no id 518/);
    expect(() => new ClipTokenizer(['th'])).toThrow(/two symbols/);
    expect(() => ClipTokenizer.fromFile(fileURLToPath(import.meta.url))).toThrow(/fewer than the 48894 merges/);
  });

  test.each([
    ['“quoted” ‘text’', '"quoted" \'text\''],
    ['ﬁne ﬂow ǆ', 'fine flow dž'],
    ['ＦＵＬＬ\u3000width', 'full width'],
    ['fish &amp;amp; chips &eacute;', 'fish & chips é'],
    ['<b>&amp;lt;</b>', '<b><</b>'],
    ['a&#3;b&#x2014;c', 'ab—c'],
    ['cafÃ© dâ€™or', "café d'or"],
    ['na\u0308ive', 'näive'],
    ['a\u0000b\u001b[31mred\u001b[0m', 'abred'],
    ['line\r\nbreak\u2028here', 'line break here'],
    ['\ud800lone', '\ufffdlone'],
    ['Ã is a letter', 'ã is a letter'],
  ])('cleans %j', (dirty, clean) => {
    expect(tokenizer.encode(dirty)).toEqual(tokenizer.encode(clean));
  });

  const vocabulary = fileURLToPath(new URL('../../../shared/data/clip', import.meta.url));
  test("OpenAI's vocabulary", ({ skip }) => {
    const file = join(vocabulary, 'bpe_simple_vocab_16e6.txt.gz');
    if (!existsSync(file)) skip('bpe_simple_vocab_16e6.txt.gz is not among the shared data');
    const openai = ClipTokenizer.fromFile(file);
    expect([openai.vocabSize, openai.startId, openai.endId]).toEqual([49408, 49406, 49407]);
    expect(openai.encode('a photo of a dog')).toEqual([320, 1125, 539, 320, 1929]);
    expect(openai.decode(openai.encode('a photo of a dog'))).toBe('a photo of a dog ');
  });
});
