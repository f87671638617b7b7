import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { graft } from '../../lib/adapters/index.js';
import { readSafetensors } from '../../lib/checkpoint/index.js';
import {
  EncoderDecoder,
  FcnHead,
  Fpn,
  FpnHead,
  MaskDecoder,
  pixelAccuracy,
  probabilities,
  Segmenter,
  segmenterStarts,
  SetrUpHead,
  slideInference,
  UPerHead,
  windowStarts,
} from '../../lib/heads/index.js';
import { createCustomModel, loadState } from '../../lib/models/index.js';
import { aten, manualSeed, noGrad, rand, randint, randn, tensor, type Tensor } from '../../lib/tensor/index.js';

const levels = (channels: readonly number[], sizes = [16, 8, 4, 2]): Tensor[] =>
  channels.map((c, i) => randn([2, c, sizes[i] ?? 1, (sizes[i] ?? 1) + 1]));

describe('Fpn', () => {
  const maps = levels([4, 6, 8]);

  it.each(['on_input', 'on_lateral', 'on_output'] as const)(
    'makes extra levels %s, each from the one before',
    (extra) => {
      manualSeed(0);
      const fpn = new Fpn({ inChannels: [4, 6, 8], outChannels: 5, numOuts: 5, extra });
      const outs = fpn.fuse(maps);
      expect(outs.map((map) => map.shape[2])).toEqual([16, 8, 4, 2, 1]);
      const source = { on_input: maps[2]!, on_lateral: fpn.lateral_convs.at(2).run(maps[2]!), on_output: outs[2]! }[
        extra
      ];
      expect(fpn.fpn_convs.at(3).run(source).allclose(outs[3]!, 1e-5, 1e-6)).toBe(true);
      expect(fpn.fpn_convs.at(4).run(outs[3]!).allclose(outs[4]!, 1e-5, 1e-6)).toBe(true);
    },
  );

  it('leaves out levels below the first one that is used, and takes every second pixel otherwise', () => {
    const fpn = new Fpn({ inChannels: [4, 6, 8], outChannels: 5, numOuts: 3, startLevel: 1 });
    expect(fpn.lateral_convs.length).toBe(2);
    const outs = fpn.fuse(maps);
    expect(outs.map((map) => map.shape.slice(2))).toEqual([[8, 9], [4, 5], [2, 3]]); // prettier-ignore
    expect(outs[2]!.select(2, 1).select(2, 1).equal(outs[1]!.select(2, 2).select(2, 2))).toBe(true);
  });

  it('refuses other numbers of levels', () => {
    expect(() => new Fpn({ inChannels: [4, 6], numOuts: 1 })).toThrow(/2 levels are used and 1 leave/);
    expect(() => new Fpn({ inChannels: [4, 6, 8] }).fuse(maps.slice(1))).toThrow(/3 levels are expected, given 2/);
  });
});

describe('heads', () => {
  it('say what is missing or does not fit', () => {
    const uper = new UPerHead({ inChannels: [4, 6], channels: 4, numClasses: 2 });
    expect(() => uper.segment([randn([1, 4, 8, 8])])).toThrow(/UPerHead: it reads level 1, and 1 were given/);
    expect(() => uper.run(randn([1, 4, 8, 8]))).toThrow(/call segment\(levels, ctx\)/);
    expect(() => new FcnHead({ inChannels: 4, channels: 8, numConvs: 0, numClasses: 2 })).toThrow(
      /4 channels cannot become 8/,
    );
    expect(() => new FpnHead({ inChannels: [4, 4], featureStrides: [8, 4], numClasses: 2 })).toThrow(
      /first stride must be the smallest/,
    );
    expect(() => new UPerHead({ inChannels: [4, 6], inIndex: [0], numClasses: 2 })).toThrow(
      /2 channel counts for 1 levels/,
    );
    expect(() => new FcnHead({ inChannels: 4, kernelSize: 2, numClasses: 2 })).toThrow(/must be odd/);
  });

  it('align corners in every resize when asked', () => {
    manualSeed(4);
    for (const alignCorners of [false, true]) {
      const head = new SetrUpHead({ inChannels: 3, channels: 3, numConvs: 1, numClasses: 2, alignCorners }).eval();
      const x = randn([1, 3, 4, 4]);
      const [conv] = [...head.up_convs.at(0)];
      const inner = conv!.run(head.norm.run(x));
      const expected = head.conv_seg.run(aten.upsampleBilinear2d(inner, [8, 8], alignCorners));
      expect(head.segment([x]).allclose(expected, 1e-5, 1e-6)).toBe(true);
    }
  });

  it('start with a small classifier, but for SETR, whose is made as any convolution', () => {
    manualSeed(6);
    const size = { inChannels: 64, channels: 64, numClasses: 20 };
    const largest = ({ conv_seg: { weight } }: FcnHead | SetrUpHead): number => Number(weight.abs().max().item());
    const small = new FcnHead(size);
    expect(largest(small)).toBeLessThan(0.06);
    expect(small.conv_seg.bias?.eq(0).all().item()).toBe(true);
    // Uniform within 1 / sqrt(64).
    const plain = new SetrUpHead(size);
    expect(largest(plain)).toBeGreaterThan(0.11);
    expect(largest(plain)).toBeLessThan(0.1251);
    expect(plain.conv_seg.bias?.eq(0).any().item()).toBe(false);
  });

  it('drop whole channels in training only', () => {
    manualSeed(5);
    const head = new FcnHead({
      inChannels: 4,
      channels: 4,
      numConvs: 0,
      concatInput: false,
      numClasses: 1,
      dropout: 0.5,
    });
    const x = randn([1, 4, 3, 3]);
    expect(
      head
        .eval()
        .segment([x])
        .equal(head.segment([x])),
    ).toBe(true);
    expect(
      head
        .train()
        .segment([x])
        .equal(head.segment([x])),
    ).toBe(false);
  });
});

function tinyModel(average: 'all' | 'valid' = 'all'): EncoderDecoder {
  const backbone = createCustomModel('resnet', {
    block: 'basic',
    layers: [1, 1],
    channels: [4, 6],
    stemChannels: 4,
  }).toTrunk();
  const common = { numClasses: 3, dropout: 0, channels: 4 };
  return new EncoderDecoder({
    backbone,
    decodeHead: new UPerHead({ ...common, inChannels: [4, 6], poolScales: [1, 2] }),
    auxiliaryHead: [
      new FcnHead({ ...common, inChannels: 4, inIndex: 0, lossWeight: 0.4 }),
      new FcnHead({ ...common, inChannels: 6, inIndex: 1, lossWeight: 0.2 }),
    ],
    average,
  });
}

describe('EncoderDecoder', () => {
  it("logs mmseg's accuracy, ignored pixels among all", () => {
    const folder = fileURLToPath(new URL('../golden/cases/dense_heads/encoder_decoder_loss/', import.meta.url));
    const { accuracy_seg: expected } = JSON.parse(readFileSync(`${folder}case.json`, 'utf8')) as {
      accuracy_seg: { decode: number };
    };
    const get = (name: string): Tensor => readSafetensors(`${folder}io.safetensors`).tensors.get(`input.${name}`)!;
    const weights = readSafetensors(`${folder}weights.safetensors`).tensors;
    const head = new UPerHead({
      inChannels: [6, 8, 8, 10],
      poolScales: [1, 2],
      channels: 8,
      numClasses: 5,
      dropout: 0,
    });
    const own = [...weights].flatMap(([name, value]): [string, Tensor][] =>
      name.startsWith('decode_head.') ? [[name.slice('decode_head.'.length), value]] : [],
    );
    head.loadStateDict(new Map(own));
    const logits = head.train().segment([0, 1, 2, 3].map((i) => get(`f${i}`)));
    expect(Number(pixelAccuracy(logits, get('label')).item())).toBeCloseTo(expected.decode, 3);
  });

  it('sums its losses; ignored pixels count in the mean or do not', () => {
    manualSeed(6);
    const model = tinyModel().eval();
    const images = rand([2, 3, 32, 40]);
    const labels = randint(0, 3, [2, 32, 40]);
    labels.narrow(1, 0, 8).fill_(255);
    const { losses, loss } = model.losses(images, labels.unsqueeze(1));
    expect(Object.keys(losses)).toEqual(['decode.loss_seg', 'aux_0.loss_seg', 'aux_1.loss_seg']);
    expect(
      Object.values(losses)
        .reduce((sum, one) => sum.add(one))
        .allclose(loss),
    ).toBe(true);
    const valid = tinyModel('valid').eval();
    valid.loadStateDict(model.stateDict());
    // A quarter of the pixels does not count.
    expect(Number(valid.losses(images, labels).loss.item())).toBeCloseTo(Number(loss.item()) / 0.75, 4);
    expect([...model.stateDict().keys()].some((name) => name.startsWith('auxiliary_head.1.convs.0.conv.'))).toBe(true);
  });

  it('runs whole and by windows: one window is the whole image', () => {
    manualSeed(7);
    const model = tinyModel().eval();
    const images = rand([1, 3, 33, 47]);
    noGrad(() => {
      const whole = model.logits(images);
      expect(whole.shape).toEqual([1, 3, 33, 47]);
      expect(model.logits(images, { crop: [40, 50], stride: 30 }).allclose(whole, 1e-5, 1e-6)).toBe(true);
      const classes = model.segment([{ images }, { images: images.flip([3]), options: { flipped: true } }]);
      expect(classes.shape).toEqual([1, 33, 47]);
      const mean = model.probabilities(images).add(model.probabilities(images.flip([3]), { flipped: true }));
      expect(classes.equal(mean.argmax(1))).toBe(true);
      expect(model.segment(images).equal(whole.argmax(1))).toBe(true);
    });
  });

  it('is grafted in its backbone only, and its heads train', () => {
    const model = tinyModel();
    expect(model.sites().length).toBeGreaterThan(3);
    expect(model.sites().every(({ path }) => path.startsWith('backbone.'))).toBe(true);
    const adapter = graft(model, 'conv_adapter', { reduction: 2 }, { head: 'train' });
    model.losses(rand([2, 3, 32, 32]), randint(0, 3, [2, 32, 32])).loss.backward();
    expect(model.backbone.parameters().every((p) => p.grad === null)).toBe(true);
    expect(adapter.namedParameters().some(([name]) => name.includes('decode_head.conv_seg'))).toBe(true);
  });
});

describe('windows', () => {
  it('start as the two codes place them', () => {
    expect(windowStarts(35, 16, 11)).toEqual([0, 11, 19]);
    expect(windowStarts(10, 16, 11)).toEqual([0]);
    expect(segmenterStarts(35, 16, 11)).toEqual([0, 11, 19]);
    expect(segmenterStarts(38, 16, 11)).toEqual([0, 11, 22]);
    expect(segmenterStarts(16, 16, 11)).toEqual([0]);
  });

  it('average what they see, and refuse strides that skip pixels', () => {
    const images = rand([2, 3, 13, 17]);
    const same = slideInference(images, { crop: [5, 6], stride: [3, 4] }, (window) => window);
    expect(same.allclose(images, 1e-5, 1e-6)).toBe(true);
    expect(() => slideInference(images, { crop: 4, stride: 5 }, (window) => window)).toThrow(/stride not larger/);
    const p = probabilities(tensor([[[[0, 9]], [[9, 0]]]]), { flipped: true, originalSize: [2, 2] });
    expect(p.argmax(1).tolist()).toEqual([[[0, 1], [0, 1]]]); // prettier-ignore
  });
});

describe('Segmenter', () => {
  const encoder = { imgSize: 32, patchSize: 8, embedDim: 16, depth: 1, numHeads: 2 };

  it.each([
    ['linear', 'linear' as const],
    ['mask', { depth: 1, numHeads: 2, dropRate: 0 }],
  ])('takes images of any size, %s decoder', (_, decoder) => {
    manualSeed(8);
    const model = new Segmenter({ encoder: { ...encoder, distilled: true }, decoder, numClasses: 4 }).eval();
    for (const [h, w] of [
      [32, 32],
      [21, 37],
      [8, 8],
    ] as const) {
      // prettier-ignore
      expect(model.run(rand([2, 3, h, w])).shape).toEqual([2, 4, h, w]);
    }
    const labels = randint(0, 4, [2, 21, 37]);
    const loss = model.loss(rand([2, 3, 21, 37]), labels);
    loss.backward();
    expect(model.parameters().every((p) => p.grad !== null)).toBe(true);
    noGrad(() => {
      expect(model.slide(rand([1, 3, 40, 50]), 32, 20).shape).toEqual([1, 4, 40, 50]);
      expect(model.slide(rand([1, 3, 20, 50]), 32, 20).shape).toEqual([1, 4, 20, 50]);
      const square = rand([1, 3, 32, 32]);
      expect(model.slide(square, 32, 20).allclose(model.run(square), 1e-5, 1e-6)).toBe(true);
    });
  });

  it('loads official files: the distillation token, classifiers that nothing reads', () => {
    const model = new Segmenter({ encoder: { ...encoder, distilled: true }, decoder: 'linear', numClasses: 4 });
    const official = new Map<string, Tensor>(
      [...model.stateDict()].map(([name, value]) => [name.replace('reg_token', 'dist_token'), value.add(1)]),
    );
    for (const head of ['head', 'head_dist']) official.set(`encoder.${head}.weight`, rand([1000, 16]));
    loadState(model, official);
    expect(model.encoder.reg_token?.equal(official.get('encoder.dist_token')!)).toBe(true);
  });

  it('scores are normed over the classes, whatever the length of the tokens', () => {
    manualSeed(9);
    const decoder = new MaskDecoder({ inChannels: 8, numClasses: 3, numHeads: 2, depth: 1 }).eval();
    const scores = decoder.run(rand([2, 6, 8]));
    expect(scores.shape).toEqual([2, 6, 3]);
    expect(scores.mean([-1]).abs().max().item()).toBeLessThan(1e-5);
  });

  it('is grafted in its encoder only; tokens that grafts set in front are dropped', () => {
    const model = new Segmenter({ encoder, decoder: { depth: 1, numHeads: 2 }, numClasses: 4 });
    expect(model.sites().every(({ path }) => path.startsWith('encoder.'))).toBe(true);
    graft(model, 'vpt', {}, { head: 'train' });
    expect(model.run(rand([1, 3, 32, 32])).shape).toEqual([1, 4, 32, 32]);
  });
});
