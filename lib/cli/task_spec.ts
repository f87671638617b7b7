/** What a run is for, as JSON: from the flags of `finetune` into `run.json` and the adapter folder, and back. */
import { Option, type Command } from 'commander';
import { z } from 'zod';
import type { DetectionHeadName, SegmentationHeadName } from '../heads/index.js';
import { collect, integer, parseSettings } from './arguments.js';
import { UsageError } from './output.js';

export const taskKinds = ['classify', 'segment', 'detect', 'multi', 'video'] as const;
export type TaskKind = (typeof taskKinds)[number];

// The lists of lib/heads, which is not loaded for a help text.
const SEGMENTATION_HEADS = [
  'upernet',
  'fpn',
  'fcn',
  'setr_pup',
  'segmenter',
  'segmenter_linear',
] as const satisfies readonly SegmentationHeadName[];
/** Systems of lib/systems that segment: what is behind the backbone is more than a head. */
const SEGMENTATION_SYSTEMS = ['representation_separation', 'dense_clip'] as const;
const ALL_SEGMENTATION = [...SEGMENTATION_HEADS, ...SEGMENTATION_SYSTEMS] as const;
const MULTI_SYSTEMS = ['lv_adapter'] as const;
/** DenseCLIP's detectors: its pyramid under a stock head. */
const DETECTION_SYSTEMS = ['dense_clip_retinanet', 'dense_clip_faster_rcnn'] as const;
const DETECTION_HEADS = ['faster_rcnn', 'retinanet'] as const satisfies readonly DetectionHeadName[];
const ALL_DETECTION = [...DETECTION_HEADS, ...DETECTION_SYSTEMS] as const;

const positive = z.int().positive();
const headOptions = z.record(z.string(), z.unknown()).default({});
const specs = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('classify') }),
  z.strictObject({
    kind: z.literal('segment'),
    head: z.enum(ALL_SEGMENTATION),
    channels: positive.optional(),
    /** Of a system; of heads, `fusion`. */
    options: headOptions,
    /** Windows for images larger than the network's input; null: images are run whole. */
    windows: z.strictObject({ crop: positive, stride: positive }).nullable(),
  }),
  z.strictObject({
    kind: z.literal('detect'),
    head: z.enum(ALL_DETECTION),
    channels: positive.optional(),
    /** Of a system; of heads, `neck`. */
    options: headOptions,
    /** The shorter side that images are resized to. */
    size: positive,
  }),
  z.strictObject({
    kind: z.literal('multi'),
    head: z.enum(MULTI_SYSTEMS),
    channels: positive.optional(),
    options: headOptions,
    /** The shorter side that images are resized to. */
    size: positive,
  }),
  z.strictObject({
    kind: z.literal('video'),
    frames: positive,
    stride: z.int().nonnegative(),
    size: positive,
    views: z.tuple([positive, z.union([z.literal(1), z.literal(3)])]),
  }),
]);

export type TaskSpec = z.output<typeof specs>;
export type SpecOf<K extends TaskKind> = Extract<TaskSpec, { kind: K }>;
/** Tasks whose models may be systems. */
export type DenseSpec = SpecOf<'segment'> | SpecOf<'detect'> | SpecOf<'multi'>;

/** What the adapter folder of a task other than classification holds beside the adapter. */
const stored = z.strictObject({
  spec: specs,
  /** The backbone inside the model: its name in the registry, and what it was created with. */
  backbone: z.strictObject({ name: z.string(), options: z.record(z.string(), z.unknown()) }),
  /** The names of the classes as tokens, by task, and the sizes of the text tower that reads them. */
  language: z
    .strictObject({
      tokens: z.record(z.string(), z.array(z.array(z.int().nonnegative()))),
      text: z.strictObject({
        ...{ contextLength: positive, vocabSize: positive, width: positive },
        ...{ heads: positive, layers: positive, embedDim: positive },
      }),
    })
    .optional(),
});
export type StoredTask = z.output<typeof stored>;

/** @throws Error that names the folder if its task is malformed */
export function parseStoredTask(value: unknown, folder: string): StoredTask {
  const parsed = stored.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new Error(`the adapter in ${folder} has a task that this version cannot read: ${issue?.message ?? ''}`);
}

/** The flags of a task, as commander parses them. */
export interface TaskFlags {
  readonly task: TaskKind;
  readonly head?: string;
  readonly headChannels?: number;
  readonly headSet?: string[];
  readonly frames?: number;
  readonly frameStride?: number;
  readonly views?: [number, 1 | 3];
}

/** What `evaluate` and `predict` may change of a task. */
export interface ScoringFlags {
  readonly windows?: { crop: number; stride: number } | false;
  readonly views?: [number, 1 | 3];
}

/** `512,384` to windows of 512 pixels every 384. */
function windows(text: string): { crop: number; stride: number } {
  const match = /^([1-9]\d*),([1-9]\d*)$/.exec(text);
  if (!match || Number(match[2]) > Number(match[1]))
    throw new UsageError(`--windows: expected the side and the distance of windows, as 512,384, got '${text}'`);
  return { crop: Number(match[1]), stride: Number(match[2]) };
}

/** Adds the flags to a command. */
export function addScoringOptions(command: Command): Command {
  return command
    .addOption(
      new Option(
        '--windows <side,distance>',
        'segment: run images window by window, such as 512,384 (default: as trained)',
      ).argParser(windows),
    )
    .option('--no-windows', 'segment: run images whole')
    .addOption(viewsOption());
}

/** The task with what the flags change. @throws UsageError for a flag of another task */
export function withScoring(spec: TaskSpec, flags: ScoringFlags): TaskSpec {
  const { windows: given, views: seen } = flags;
  // Commander gives `true` where --no-windows exists and neither is set.
  const isGiven = given !== undefined && (given as unknown) !== true;
  if (isGiven && spec.kind !== 'segment') throw new UsageError(`--windows does not belong to the task ${spec.kind}`);
  if (seen && spec.kind !== 'video') throw new UsageError(`--views does not belong to the task ${spec.kind}`);
  if (spec.kind === 'segment' && isGiven) return { ...spec, windows: given === false ? null : given };
  if (spec.kind !== 'video' || !seen) return spec;
  if (seen[0] > 1 && spec.stride === 0)
    throw new UsageError('--views: several clips in time need frames at a distance, and these are taken one per part');
  return { ...spec, views: seen };
}

/** `2x3` to two views in time and three in space. */
function views(text: string): [number, 1 | 3] {
  const match = /^([1-9]\d*)x([13])$/.exec(text);
  if (!match) throw new UsageError(`--views: expected views in time x views in space (1 or 3), as 2x3, got '${text}'`);
  return [Number(match[1]), Number(match[2]) as 1 | 3];
}

/** Adds the flags to a command. */
export function addTaskOptions(command: Command): Command {
  return command
    .optionsGroup('Task:')
    .addOption(
      new Option('--task <kind>', 'what images (video: clips) are to become').choices(taskKinds).default('classify'),
    )
    .option(
      '--head <name>',
      `what is behind the backbone; segment: ${ALL_SEGMENTATION.join(', ')}; detect: ${ALL_DETECTION.join(', ')}; ` +
        `multi: ${MULTI_SYSTEMS.join(', ')} (default: the first of each)`,
    )
    .addOption(
      new Option('--head-channels <n>', "segment, detect, multi: width of the head (default: the head's)").argParser(
        integer(1),
      ),
    )
    .option(
      '--head-set <key=value>',
      `an option of ${[...SEGMENTATION_SYSTEMS, ...DETECTION_SYSTEMS, ...MULTI_SYSTEMS].join(', ')}, such as width=32; ` +
        `of upernet, fusion=gated, of ${DETECTION_HEADS.join(' and ')}, neck=horfpn (repeatable)`,
      collect,
    )
    .addOption(new Option('--frames <n>', 'video: frames per clip (default: 8)').argParser(integer(1)))
    .addOption(
      new Option(
        '--frame-stride <n>',
        'video: distance of the frames; 0 takes one out of each equal part (default: 0)',
      ).argParser(integer(0)),
    )
    .addOption(viewsOption());
}

const viewsOption = (): Option =>
  new Option(
    '--views <txs>',
    'video: clips that a score averages over, in time x in space (1 or 3), such as 2x3',
  ).argParser(views);

const DEFAULT_FRAMES = 8;

/**
 * The task that the flags ask for.
 *
 * @param size side of the network's input
 * @param isWhole whether images are squeezed to that size
 * @throws UsageError for a flag of another task, or a head that there is not
 */
export function taskFromFlags(flags: TaskFlags, size: number, isWhole: boolean): TaskSpec {
  const { task, head, headChannels, headSet, frames, frameStride, views: seen } = flags;
  const given = {
    head,
    'head-channels': headChannels,
    'head-set': headSet,
    frames,
    'frame-stride': frameStride,
    views: seen,
  };
  const own: Record<TaskKind, readonly string[]> = {
    classify: [],
    segment: ['head', 'head-channels', 'head-set'],
    detect: ['head', 'head-channels', 'head-set'],
    multi: ['head', 'head-channels', 'head-set'],
    video: ['frames', 'frame-stride', 'views'],
  };
  const strange = Object.entries(given).find(([name, value]) => value !== undefined && !own[task].includes(name));
  if (strange) throw new UsageError(`--${strange[0]} does not belong to --task ${task}`);
  const channels = headChannels === undefined ? {} : { channels: headChannels };
  switch (task) {
    case 'classify':
      return { kind: task };
    case 'segment': {
      const name = oneOf(head ?? 'upernet', ALL_SEGMENTATION, task);
      const options = optionsOf(name, headSet);
      return {
        ...{ kind: task, head: name, ...channels, options },
        windows: isWhole ? null : { crop: size, stride: Math.ceil((2 * size) / 3) },
      };
    }
    case 'detect': {
      const name = oneOf(head ?? 'faster_rcnn', ALL_DETECTION, task);
      return { kind: task, head: name, ...channels, options: optionsOf(name, headSet), size };
    }
    case 'multi': {
      const options = parseSettings(headSet ?? [], '--head-set');
      return { kind: task, head: oneOf(head ?? 'lv_adapter', MULTI_SYSTEMS, task), ...channels, options, size };
    }
    case 'video': {
      const [inTime, inSpace] = seen ?? [1, 1];
      if (inTime > 1 && !frameStride)
        throw new UsageError('--views: several clips in time need --frame-stride above 0, the distance of the frames');
      return { kind: task, frames: frames ?? DEFAULT_FRAMES, stride: frameStride ?? 0, size, views: [inTime, inSpace] };
    }
  }
}

const isSystem = (head: string): boolean =>
  [...SEGMENTATION_SYSTEMS, ...DETECTION_SYSTEMS].some((system) => system === head);

/** What `--head-set` may say of a head that is no system. */
const HEAD_OPTIONS: Readonly<Record<string, readonly string[]>> = {
  upernet: ['fusion'],
  faster_rcnn: ['neck'],
  retinanet: ['neck'],
};

/** @throws UsageError for what a head alone has no option for */
function optionsOf(head: string, given: readonly string[] | undefined): Record<string, unknown> {
  const options = parseSettings(given ?? [], '--head-set');
  if (isSystem(head)) return options;
  const known = HEAD_OPTIONS[head] ?? [];
  const strange = Object.keys(options).find((name) => !known.includes(name));
  if (strange !== undefined) {
    const has = known.length > 0 ? `the option ${known.join(', ')} and no '${strange}'` : 'no options';
    throw new UsageError(`--head-set: the head ${head} has ${has}`);
  }
  return options;
}

/** A task whose model is a DenseCLIP. */
export const isDenseClip = (spec: TaskSpec): boolean => 'head' in spec && spec.head.startsWith('dense_clip');

/** The stock head under a system's pyramid, or the head itself. */
export const stockHead = (head: SpecOf<'detect'>['head']): DetectionHeadName =>
  head === 'dense_clip_retinanet' ? 'retinanet' : head === 'dense_clip_faster_rcnn' ? 'faster_rcnn' : head;

function oneOf<T extends string>(name: string, names: readonly T[], task: TaskKind): T {
  const found = names.find((known) => known === name);
  if (found === undefined)
    throw new UsageError(`--head: for --task ${task} there are ${names.join(', ')}; '${name}' is none of them`);
  return found;
}

/** The method where none is named: what the system behind the backbone is trained with. */
export function defaultMethod(spec: TaskSpec): string {
  if (spec.kind === 'multi') return 'linear_probe';
  return 'head' in spec && isSystem(spec.head) ? 'full' : 'conv_adapter';
}
