/** Heads by name on backbones of every shape: what they give, that they train, what they refuse. */
import { describe, expect, it } from 'vitest';
import {
  Detector,
  createDetectionModel,
  createSegmentationModel,
  firstLabel,
  pickLevels,
} from '../../lib/heads/index.js';
import {
  createCustomModel,
  createModel,
  listFamilies,
  listModels,
  modelInfo,
  type Backbone,
} from '../../lib/models/index.js';
import { manualSeed, noGrad, rand, randint, tensor } from '../../lib/tensor/index.js';

const resnet = (): Backbone => {
  manualSeed(1);
  const channels = [8, 10, 12, 14];
  return createCustomModel('resnet', {
    block: 'basic',
    layers: [1, 1, 1, 1],
    channels,
    stemChannels: 8,
    numClasses: 2,
  });
};
const vit = (): Backbone => {
  manualSeed(2);
  return createCustomModel('vit', { imgSize: 32, patchSize: 8, embedDim: 24, depth: 6, numHeads: 3, numClasses: 2 });
};
const threeLevels = (): Backbone => createModel('cifar_resnet20', { channels: [4, 8, 12] });

describe('segmentation', () => {
  it.each([
    ['upernet', 'resnet', resnet],
    ['fpn', 'resnet', resnet],
    ['fcn', 'resnet', resnet],
    ['fpn', 'three levels', threeLevels],
    ['upernet', 'vit', vit],
    ['fpn', 'vit', vit],
    ['setr_pup', 'vit', vit],
    ['segmenter', 'vit', vit],
  ] as const)('%s on %s', (head, _name, make) => {
    const model = createSegmentationModel(head, make(), { classes: 3, channels: 12 });
    const images = rand([2, 3, 32, 32]);
    const labels = randint(0, 3, [2, 32, 32], { dtype: 'int64' });
    const loss = 'losses' in model ? model.losses(images, labels).loss : model.loss(images, labels);
    loss.backward();
    const unread = /classifier|backbone\.(blocks\.[45]|layer4)|norm/;
    const silent = model.namedParameters().filter(([name, p]) => p.grad === null && !unread.test(name));
    expect(silent.map(([name]) => name)).toEqual([]);
    expect(noGrad(() => model.eval().run(images)).shape).toEqual([2, 3, 32, 32]);
    expect('auxiliary_head' in model && model.auxiliary_head !== null).toBe(head === 'upernet');
  });

  it('upernet fuses its levels by a gated convolution where asked to', () => {
    const sizes = { classes: 3, channels: 12 };
    const model = createSegmentationModel('upernet', resnet(), { ...sizes, fusion: 'gated' });
    const plain = createSegmentationModel('upernet', resnet(), { ...sizes, fusion: 'conv' });
    const fused = [...model.stateDict().keys()].filter((name) => name.startsWith('decode_head.fpn_bottleneck.'));
    expect(fused.map((name) => name.split('.').slice(2).join('.')).sort()).toEqual(
      [
        ...['proj_in.weight', 'proj_in.bias', 'dwconv.weight', 'dwconv.bias', 'proj_out.weight', 'proj_out.bias'],
        ...['pws.0.weight', 'pws.0.bias', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var'],
        'bn.num_batches_tracked',
      ].sort(),
    );
    const others = (keys: Iterable<string>): string[] => [...keys].filter((name) => !name.includes('fpn_bottleneck'));
    expect(others(model.stateDict().keys())).toEqual(others(plain.stateDict().keys()));
    expect(model.stateDict().get('decode_head.fpn_bottleneck.proj_in.weight')?.shape).toEqual([24, 48, 1, 1]);
    expect(noGrad(() => model.eval().run(rand([2, 3, 32, 32]))).shape).toEqual([2, 3, 32, 32]);
    expect(() => createSegmentationModel('fcn', resnet(), { ...sizes, fusion: 'gated' })).toThrow(
      /chosen for upernet, not for fcn/,
    );
  });

  it('segmenter_linear is one layer on the tokens of a vit, without a width', () => {
    const model = createSegmentationModel('segmenter_linear', vit(), { classes: 3 });
    const own = model.namedParameters().filter(([name]) => name.startsWith('decoder.'));
    expect(own.map(([name, p]) => [name, p.shape])).toEqual([
      ['decoder.head.weight', [3, 24]],
      ['decoder.head.bias', [3]],
    ]);
    expect(noGrad(() => model.eval().run(rand([2, 3, 32, 32]))).shape).toEqual([2, 3, 32, 32]);
    expect(() => createSegmentationModel('segmenter_linear', vit(), { classes: 3, channels: 12 })).toThrow(/no width/);
    expect(() => createSegmentationModel('segmenter_linear', resnet(), { classes: 3 })).toThrow(
      /segmenter_linear reads a plain vision transformer's tokens/,
    );
  });

  it('refuses what does not fit', () => {
    expect(() => createSegmentationModel('segmenter', resnet(), { classes: 3 })).toThrow(/plain vision transformer/);
    expect(() => createSegmentationModel('upernett' as 'upernet', resnet(), { classes: 3 })).toThrow(
      /no segmentation head 'upernett'.*upernet/,
    );
    expect(() => createSegmentationModel('fpn', resnet(), { classes: 0 })).toThrow(/positive whole number/);
  });
});

describe('detection', () => {
  it.each([
    ['faster_rcnn', 'resnet', resnet, 'fpn'],
    ['retinanet', 'resnet', resnet, 'fpn'],
    ['faster_rcnn', 'three levels', threeLevels, 'fpn'],
    ['retinanet', 'vit', vit, 'fpn'],
    ['faster_rcnn', 'resnet', resnet, 'horfpn'],
    ['retinanet', 'vit', vit, 'horfpn'],
  ] as const)('%s on %s', (head, name, make, neck) => {
    // BatchNorm learns from more than one value per channel, on the last map too.
    const size = name === 'resnet' ? 64 : 32;
    const model = createDetectionModel(head, make(), { classes: 2, size, channels: 8, boxWidth: 16, neck });
    expect(model).toBeInstanceOf(Detector);
    const first = firstLabel(head);
    const targets = [{ boxes: tensor([[4, 4, 20, 24]]), labels: tensor([first + 1], { dtype: 'int64' }) }];
    const losses = Object.values(model.losses([rand([3, size, size])], targets));
    losses.reduce((a, b) => a.add(b)).backward();
    expect(model.parameters().filter((p) => p.grad !== null).length).toBeGreaterThan(10);
    const [found] = noGrad(() => model.eval().detect([rand([3, size, size])]));
    const labels = found!.labels.tolist() as number[];
    expect(labels.every((label) => label >= first && label < first + 2)).toBe(true);
  });

  it('stands on HorFPN, which pools the levels beyond those of the backbone', () => {
    const names = (head: 'faster_rcnn' | 'retinanet'): readonly string[] =>
      createDetectionModel(head, resnet(), { classes: 2, channels: 8, neck: 'horfpn' }).backbone.levelNames;
    expect(names('faster_rcnn')).toEqual(['0', '1', '2', '3', 'pool']);
    expect(names('retinanet')).toEqual(['0', '1', '2', 'pool', 'pool2']);
    expect(() => createDetectionModel('retinanet', resnet(), { classes: 2, neck: 'bifpn' as 'fpn' })).toThrow(
      /no pyramid 'bifpn'.*fpn, horfpn/,
    );
    expect(() => createDetectionModel('retinanet', resnet(), { classes: 2, channels: 7, neck: 'horfpn' })).toThrow(
      /multiple of 2 channels, given 7/,
    );
  });

  it('pads images to what the windows of the backbone need', () => {
    manualSeed(3);
    const four = { dims: [8, 8, 8, 8], depths: [1, 1, 1, 1], windows: [3, 1, 1, 1], headDim: 4 };
    const backbone = createCustomModel('hatnet', { ...four, imgSize: 96, numClasses: 2 });
    expect(backbone.sizeMultiple).toBe(96);
    expect(createModel('hatnet_tiny', { numClasses: 0 }).sizeMultiple).toBe(224);
    const model = createDetectionModel('retinanet', backbone, { classes: 2, size: 40, channels: 8 }).eval();
    const [found] = noGrad(() => model.detect([rand([3, 50, 40])]));
    expect(found?.boxes.shape[1]).toBe(4);
  });

  it('has anchors that fit the images', () => {
    expect(() => createDetectionModel('yolo' as 'retinanet', resnet(), { classes: 2 })).toThrow(
      /no detection head 'yolo'/,
    );
    expect(() => createDetectionModel('retinanet', resnet(), { classes: -1 })).toThrow(/positive whole number/);
  });
});

it('picks four levels of every family', () => {
  for (const family of listFamilies()) {
    const { features } = modelInfo(listModels(family)[0]!);
    const picked = pickLevels(features);
    expect(picked.at(-1), family).toBe(features.length - 1);
    expect(new Set(picked).size, family).toBe(Math.min(4, features.length));
  }
  expect(pickLevels(modelInfo('vit_tiny_patch16_224').features)).toEqual([2, 5, 8, 11]);
});
