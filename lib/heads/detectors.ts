/** The published detectors by their names in torchvision 0.28.0. */
import { createModel, suggestion } from '../models/index.js';
import { BatchNorm2d } from '../nn/index.js';
import type { DetectionInputOptions } from './detection_input.js';
import type { Detector } from './detector.js';
import { FasterRcnn } from './faster_rcnn.js';
import { RetinaNet } from './retinanet.js';

/** Options of `createDetector`. */
export interface CreateDetectorOptions {
  /** Columns of the scores; Faster R-CNN's include the background. Default 91: COCO's ids. */
  readonly numClasses?: number;
  /** The body, by its name in the registry; it must have levels of strides 4 to 32. Default `resnet50`. */
  readonly backbone?: string;
  /** `frozen`: the body's BatchNorms are constants, as in published v1 files. Default: `frozen` for v1, `batch` for v2. */
  readonly backboneNorm?: 'frozen' | 'batch';
  /** Of the frozen norms; published COCO_V1 files need 0. Default 1e-5. */
  readonly frozenEps?: number;
  /** How many parts of a ResNet's body train, from layer4 backwards to the stem (5: all). Default 5, or 3 for a ResNet with frozen norms. */
  readonly trainableLayers?: number;
  readonly input?: DetectionInputOptions;
}

const BODY_PARTS = ['layer4', 'layer3', 'layer2', 'layer1', 'conv1'];

type Make = (body: ReturnType<typeof createModel>, numClasses: number, input?: DetectionInputOptions) => Detector;

const DETECTORS: Readonly<Record<string, { make: Make; norm: 'frozen' | 'batch' }>> = {
  fasterrcnn_resnet50_fpn: {
    norm: 'frozen',
    make: (body, numClasses, input) => new FasterRcnn({ body, numClasses, ...(input && { input }) }),
  },
  fasterrcnn_resnet50_fpn_v2: {
    norm: 'batch',
    make: (body, numClasses, input) =>
      new FasterRcnn({
        body,
        numClasses,
        ...(input && { input }),
        pyramid: { norm: 'batch' },
        rpn: { convDepth: 2 },
        boxHead: { kind: 'conv' },
      }),
  },
  retinanet_resnet50_fpn: {
    norm: 'frozen',
    make: (body, numClasses, input) =>
      new RetinaNet({ body, numClasses, ...(input && { input }), pyramid: { levels: coarsest3(body) } }),
  },
  retinanet_resnet50_fpn_v2: {
    norm: 'batch',
    make: (body, numClasses, input) =>
      new RetinaNet({
        body,
        numClasses,
        ...(input && { input }),
        pyramid: { levels: coarsest3(body), extra: 'p6p7_from_input' },
        headNorm: { groups: 32 },
        boxLoss: 'giou',
      }),
  },
};

function coarsest3(body: ReturnType<typeof createModel>): number[] {
  return body.featureLevels.map((_, i) => i).slice(-3);
}

/** Names that `createDetector` knows. */
export function listDetectors(): string[] {
  return Object.keys(DETECTORS);
}

/**
 * A detector as torchvision publishes it, with fresh weights; its files load with `loadWeights`.
 *
 * @throws RangeError for an unknown name or a number of trainable parts outside of 0 to 5
 *
 * ```ts
 * const detector = createDetector('fasterrcnn_resnet50_fpn', { numClasses: 3 });
 * ```
 */
export function createDetector(name: string, options: CreateDetectorOptions = {}): Detector {
  const entry = Object.hasOwn(DETECTORS, name) ? DETECTORS[name] : undefined;
  if (!entry) throw new RangeError(`no detector '${name}'${suggestion(name, listDetectors())}; see listDetectors()`);
  const { numClasses = 91, backbone = 'resnet50', backboneNorm = entry.norm, frozenEps, input } = options;
  const body = createModel(backbone).toTrunk();
  const hasParts = BODY_PARTS.every((part) => body.namedChildren().some(([child]) => child === part));
  const { trainableLayers = backboneNorm === 'frozen' && hasParts ? 3 : BODY_PARTS.length } = options;
  if (!Number.isInteger(trainableLayers) || trainableLayers < 0 || trainableLayers > BODY_PARTS.length) {
    throw new RangeError(`createDetector: trainableLayers must be 0 to ${BODY_PARTS.length}, got ${trainableLayers}`);
  }
  if (!hasParts && trainableLayers > 0 && trainableLayers < BODY_PARTS.length) {
    throw new RangeError(
      `createDetector: ${backbone} has no parts ${BODY_PARTS.join(', ')}; train all of it (5) or nothing (0)`,
    );
  }
  if (backboneNorm === 'frozen') {
    for (const [, module] of body.namedModules()) {
      if (module instanceof BatchNorm2d) module.makeConstant(frozenEps === undefined ? {} : { eps: frozenEps });
    }
  }
  const trained = BODY_PARTS.slice(0, trainableLayers);
  for (const [path, parameter] of body.namedParameters()) {
    const part = path.split('.')[0] ?? '';
    // The stem's norm trains only when everything does.
    parameter.requiresGrad = trainableLayers === BODY_PARTS.length || trained.includes(part);
  }
  return entry.make(body, numClasses, input);
}
