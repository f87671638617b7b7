/** What `quickstart` compares: backbones, tasks and methods with settings that suit both. */
import type { ShapesTask } from '../data/index.js';
import type { ModelOptions } from '../models/index.js';

/** Height and width of the images in pixels. */
export const IMAGE_SIDE = 32;

/** A method of the comparison, with its learning rate under AdamW. */
export interface MethodChoice {
  readonly method: string;
  readonly options?: Readonly<Record<string, unknown>>;
  readonly lr: number;
}

/** A task, and how much is trained on it unless the user says so. */
interface Stage {
  readonly task: ShapesTask;
  readonly images: number;
  readonly epochs: number;
}

/** A backbone that is small enough to be pretrained here, and the methods that are compared on it. */
export interface Subject {
  readonly model: string;
  readonly options: ModelOptions;
  /** What it is pretrained to tell. */
  readonly pretraining: Stage & { readonly lr: number };
  /** What it is adapted to tell; `headLr` is the learning rate of the new head, absent: the method's. */
  readonly adaptation: Stage & { readonly headLr?: number };
  readonly methods: readonly MethodChoice[];
  /** Methods that are compared only where they are asked for. */
  readonly onRequest?: readonly MethodChoice[];
  /** The method whose adapter folder is written. */
  readonly shown: string;
}

/** The backbones to choose from. */
export const SUBJECTS = {
  resnet: {
    model: 'cifar_resnet20',
    options: {},
    pretraining: { task: 'shape', images: 5000, epochs: 5, lr: 3e-3 },
    adaptation: { task: 'color', images: 1000, epochs: 6 },
    methods: [
      { method: 'linear_probe', lr: 0.1 },
      { method: 'bitfit', lr: 0.03 },
      { method: 'ssf', lr: 0.03 },
      { method: 'lora', options: { rank: 4 }, lr: 0.01 },
      { method: 'conv_adapter', options: { reduction: 4 }, lr: 0.01 },
      { method: 'full', lr: 0.002 },
    ],
    shown: 'conv_adapter',
  },
  vit: {
    model: 'vit_tiny_patch16_224',
    options: { imgSize: IMAGE_SIDE, patchSize: 4, depth: 6 },
    // Textures are slow to learn and colors quick, so that a little pretraining leaves something to adapt.
    pretraining: { task: 'texture', images: 3000, epochs: 6, lr: 5e-4 },
    // Prompts are slow to train: after a third as many steps they are no better than the linear probe.
    adaptation: { task: 'color', images: 2000, epochs: 8, headLr: 0.03 },
    methods: [
      { method: 'linear_probe', lr: 0.03 },
      { method: 'bitfit', lr: 0.01 },
      { method: 'ssf', lr: 0.01 },
      { method: 'lora', options: { rank: 8 }, lr: 0.005 },
      { method: 'fact', options: { rank: 16, scale: 10 }, lr: 0.005 },
      { method: 'krona', lr: 0.01 },
      { method: 'kadaptation', options: { phmDim: 8 }, lr: 0.01 },
      { method: 'vpt', options: { tokens: 10, deep: true }, lr: 0.01 },
      { method: 'adaptformer', options: { hidden: 16, scale: 1 }, lr: 0.005 },
      { method: 'convpass', options: { hidden: 8, scale: 1 }, lr: 0.005 },
      { method: 'pro_tuning', options: { stages: 3 }, lr: 0.003 },
      { method: 'full', lr: 5e-4 },
    ],
    onRequest: [
      { method: 'adapter', options: { width: 16 }, lr: 0.005 },
      { method: 'prefix', options: { length: 10 }, lr: 0.01 },
      { method: 'mam', options: { width: 64, length: 10 }, lr: 0.005 },
      { method: 'krona_b', lr: 0.01 },
      { method: 'krona_b_res', lr: 0.01 },
      { method: 'lokr', lr: 0.005 },
      { method: 'compacter', options: { phmDim: 2 }, lr: 0.01 },
      { method: 'noah', lr: 0.005 },
      { method: 'pevit_lora', lr: 5e-4 },
      { method: 'prompt_tuning', options: { length: 10 }, lr: 0.03 },
      { method: 'intrinsic_subspace', lr: 0.1 },
    ],
    shown: 'lora',
  },
} as const satisfies Record<string, Subject>;
