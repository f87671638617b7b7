/** The model of a task: a backbone, and what the task's specification says is around it. */
import type { SegmentationHeadName } from '../heads/index.js';
import type { Backbone, Host } from '../models/index.js';
import type { DenseClipEncoder, DenseClipVisual } from '../systems/index.js';
import type { Module } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { asUsage, UsageError } from './output.js';
import { towerOf, type Language } from './task_language.js';
import { isDenseClip, stockHead, type DenseSpec, type SpecOf, type TaskSpec } from './task_spec.js';

/** Whether a model of the task reads maps, so that its backbone gives up what only classification needs. */
export const readsMaps = (spec: TaskSpec): boolean =>
  (spec.kind === 'segment' || spec.kind === 'detect' || spec.kind === 'multi') &&
  !spec.head.startsWith('segmenter') &&
  !isDenseClip(spec);

/** Options of a system without those that say what language there is. */
function ownOptions({ options, channels }: DenseSpec, width: string): Record<string, unknown> {
  const { language: _, text: __, ...own } = options;
  return { ...(channels !== undefined && { [width]: channels }), ...own };
}

/** The model of a task: the backbone itself, or a fresh head or system around it. */
export async function modelFor(
  spec: TaskSpec,
  backbone: Backbone,
  classNames: readonly string[],
  language: Language | null,
): Promise<Host> {
  const classes = classNames.length;
  const width = 'channels' in spec && spec.channels !== undefined ? { channels: spec.channels } : {};
  if (spec.kind === 'multi') return lvModel(spec, backbone, classNames, language);
  if (isDenseClip(spec)) return denseClip(spec as SpecOf<'segment' | 'detect'>, backbone, classNames, language);
  const { createDetectionModel, createSegmentationModel } = await import('../heads/index.js');
  if (spec.kind === 'detect')
    return asUsage(() =>
      createDetectionModel(stockHead(spec.head), backbone, { ...spec.options, classes, size: spec.size, ...width }),
    );
  if (spec.kind !== 'segment') return backbone;
  if (spec.head !== 'representation_separation') {
    const head = spec.head as SegmentationHeadName;
    return asUsage(() => createSegmentationModel(head, backbone, { ...spec.options, classes, ...width }));
  }
  const { RepresentationSeparation } = await import('../systems/index.js');
  return asUsage(() => new RepresentationSeparation(backbone, { ...ownOptions(spec, 'width'), classes }));
}

async function lvModel(
  spec: SpecOf<'multi'>,
  backbone: Backbone,
  classNames: readonly string[],
  language: Language | null,
): Promise<Host> {
  const { groupTaskClasses } = await import('../data/index.js');
  const { LV_TASKS, LvMultiTask } = await import('../systems/index.js');
  const { tensor } = await import('../tensor/index.js');
  const groups = groupTaskClasses(classNames);
  const strange = Object.keys(groups).find((task) => !LV_TASKS.some((known) => known === task));
  if (strange !== undefined)
    throw new UsageError(
      `lv_adapter has the tasks ${LV_TASKS.join(', ')}; the data has '${strange}'. Rename its folder of masks`,
    );
  const tasks = Object.fromEntries(Object.entries(groups).map(([task, names]) => [task, names.length]));
  const text = language && (await towerOf(language));
  return asUsage(() => {
    const model = new LvMultiTask(backbone, text, { ...ownOptions(spec, 'channels'), tasks, size: spec.size });
    const ids = Object.entries(language?.tokens ?? {}).map(([task, rows]) => [task, tensor(rows, { dtype: 'int64' })]);
    return model.setClasses(Object.fromEntries(ids) as Record<string, Tensor>);
  });
}

/**
 * The side of the images that a backbone is built for: DenseCLIP's detectors cut positions out of a grid that holds the
 * largest padded image.
 */
export async function backboneSide(spec: TaskSpec, imageSize: number | null): Promise<number | null> {
  if (spec.kind !== 'detect' || !isDenseClip(spec)) return imageSize;
  const { defaultMaxSize } = await import('../heads/index.js');
  return 32 * Math.ceil(defaultMaxSize(spec.size) / 32);
}

/** A DenseCLIP of the sizes of a CLIP's image tower, whose weights it takes over. */
async function denseClip(
  spec: SpecOf<'segment' | 'detect'>,
  backbone: Backbone,
  classNames: readonly string[],
  language: Language | null,
): Promise<Host> {
  const { defaultMaxSize } = await import('../heads/index.js');
  const { modelInfo } = await import('../models/index.js');
  const { createDenseClip, createDenseClipDetector } = await import('../systems/index.js');
  const { tensor } = await import('../tensor/index.js');
  const { family, options } = modelInfo(backbone.name, backbone.options);
  const visual = asUsage(() => visualOf(family, options, spec.options['outIndices']));
  const { outIndices: _, ...own } = ownOptions(spec, 'channels');
  const { contextLength, embedDim: __, ...text } = language?.text ?? { contextLength: 0, embedDim: 0 };
  const rows = language?.tokens['classes'] ?? [];
  const ids = tensor(rows, { dtype: 'int64' });
  const textTokens = rows[0]?.length ?? 0;
  const names = language && { textTokens, contexts: contextLength - textTokens };
  const sizes = { visual, ...(language && { text }) };
  const classes = [...classNames];
  const [inputResolution] = [options['imgSize']].flat() as number[];
  const model = asUsage(() => {
    if (spec.kind === 'segment') {
      const made = createDenseClip(sizes, { inputResolution, ...own, classes, language: language !== null, ...names });
      made.language?.setClasses(ids);
      return made;
    }
    if (!language)
      throw new UsageError('DenseCLIP detects by the names of the classes; leave out --head-set language=false');
    const input = { minSize: spec.size, maxSize: defaultMaxSize(spec.size) };
    const head = stockHead(spec.head);
    const made = createDenseClipDetector(sizes, { inputResolution, input, ...own, classes, head, ...names });
    made.backbone.language.setClasses(ids);
    return made;
  });
  const tower = (await backboneOf(model)) as DenseClipEncoder;
  const taken = tower.convertStateDict(backbone.stateDict());
  tower.loadStateDict(new Map([...tower.stateDict()].map(([name, value]) => [name, taken.get(name) ?? value])));
  if (language?.tower) (await textTowerOf(model))?.loadStateDict(new Map(language.tower));
  return model;
}

/** The sizes of an image tower of CLIP. @throws RangeError for any other backbone */
function visualOf(family: string, o: Readonly<Record<string, unknown>>, outIndices: unknown): DenseClipVisual {
  const n = (name: string): number => o[name] as number;
  if (family === 'clip_resnet')
    return { layers: o['layers'] as number[], width: n('width'), outputDim: n('outputDim') };
  if (family !== 'clip_vit')
    throw new RangeError(
      'dense_clip needs an image tower of CLIP: resnet50_clip, vit_base_patch16_clip_quickgelu_224 or the like',
    );
  const depth = n('depth');
  // The published taps of 12 blocks; of others, the ends of four groups.
  const usual = depth === 12 ? [3, 5, 7, 11] : [1, 2, 3, 4].map((i) => Math.round((i * depth) / 4) - 1);
  return {
    ...{
      width: n('embedDim'),
      layers: depth,
      heads: n('numHeads'),
      patchSize: n('patchSize'),
      outputDim: n('projDim'),
    },
    outIndices: (outIndices ?? usual) as number[],
  };
}

/** The backbone inside a model that `modelFor` has made. */
export async function backboneOf(model: Host): Promise<Module> {
  const { Detector, EncoderDecoder, Segmenter } = await import('../heads/index.js');
  const { LvAdapter, RepresentationSeparation } = await import('../systems/index.js');
  if (model instanceof EncoderDecoder || model instanceof LvAdapter) return model.backbone;
  if (model instanceof RepresentationSeparation) return model.backbone;
  if (model instanceof Segmenter) return model.encoder;
  return model instanceof Detector ? model.backbone.body : model;
}

/** The text tower inside such a model. */
export async function textTowerOf(model: Host): Promise<Module | null> {
  const { Detector } = await import('../heads/index.js');
  const { DenseClip, DenseClipPyramid, LvAdapter } = await import('../systems/index.js');
  const reader = model instanceof Detector ? model.backbone : model;
  const reads = reader instanceof DenseClip || reader instanceof DenseClipPyramid || reader instanceof LvAdapter;
  return reads ? reader.text_encoder : null;
}
