/** Prompt-matched segmentation: the bare prompt matcher, and trunks with matchers between their stages. */
import { graft, PromptMatcher, SEGMENTATION_LABELS } from '../../../lib/adapters/index.js';
import type { Backbone } from '../../../lib/models/index.js';
import { Context, Conv2d, functional } from '../../../lib/nn/index.js';
import { aten, type Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, entriesOf, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { adapted, countAdapted } from './adapted.js';
import { convnextOf } from './convnext.js';
import { swinOf } from './swin.js';
import { published, resnetOf, vitOf } from './timm_backbones.js';

function matcher(config: Config): Built {
  const iterations = config.get<number>('iterations');
  const module = new PromptMatcher(config.get('channels'), {
    classes: config.get('num_classes'),
    width: config.get('width'),
    iterations,
  });
  return {
    module,
    state: entriesOf(module),
    run: (inputs) => {
      const x = soleInput(inputs);
      const ctx = new Context();
      return { y: x.add(module.run(x, ctx)), ...Object.fromEntries(ctx.aux) };
    },
  };
}

/** A backbone that is named by its family alone, with timm's arguments; what they leave out has the value of these cases. */
export function trunkOf(text: string, given: Readonly<Record<string, unknown>>): { trunk: Backbone; stages: number } {
  const { depths, ...rest }: Readonly<Record<string, unknown>> = { num_classes: 1, ...given };
  const counts = Array.isArray(depths) ? depths : [];
  const make: readonly (readonly [RegExp, () => readonly [Backbone, Config]])[] = [
    [
      /resnet/,
      () => {
        const config = new Config({ block: 'basic', ...(depths !== undefined && { layers: depths }), ...rest });
        return [resnetOf(config), config];
      },
    ],
    [
      /vit/,
      () => {
        const config = new Config(rest);
        return [vitOf(config), config];
      },
    ],
    [
      /swin/,
      () => {
        const config = new Config({ depths, ...rest });
        return [swinOf(config), config];
      },
    ],
    [
      /convnext/,
      () => {
        const config = new Config({ depths, ...rest });
        return [convnextOf(config), config];
      },
    ],
  ];
  const found = make.find(([pattern]) => pattern.test(text));
  if (!found) throw new UnknownCase(`no builder knows the backbone '${text}'`);
  const [model, config] = found[1]();
  config.done();
  return { trunk: model.toTrunk(), stages: counts.length || Number(depths ?? 4) };
}

/** The levels that a head reads: those of the stages, or of the ends of equal groups of blocks. */
function levels(trunk: Backbone, stages: number, x: Tensor, ctx: Context): Tensor[] {
  const maps = trunk.forwardIntermediates(x, ctx);
  return Array.from({ length: stages }, (_, i) => maps[((i + 1) * maps.length) / stages - 1] as Tensor);
}

function framework(config: Config): Built {
  const text = config.get<string>('backbone');
  const { trunk, stages } = trunkOf(text, config.get('backbone_config'));
  const between = Array.from({ length: stages - 1 }, (_, i) => i + 1);
  config.expect('positions', `after stages ${between.join(',')}`);
  const lossWeight = config.get<number | null>('interim_loss_weight', null);
  const options = { width: config.get('width'), iterations: config.get('iterations'), stages };
  const classes = config.get<number>('num_classes');
  const adapter = graft(trunk, 'spm', { ...options, classes, ...(lossWeight !== null && { lossWeight }) });
  const built = adapted(trunk, adapter, { backbone: (name) => `backbone.${name}` });
  const name = (key: string): string => `map_${key.replace('spm.', '').replace('.', '_')}`;

  if (config.get<string | null>('head', null) === null) {
    return {
      ...built,
      run: (inputs) => {
        const ctx = new Context();
        const features = levels(trunk, stages, soleInput(inputs), ctx);
        const maps = Array.from(ctx.aux, ([key, map]): [string, Tensor] => [name(key), map]);
        return { ...Object.fromEntries(features.map((map, i) => [`feature_${i}`, map])), ...Object.fromEntries(maps) };
      },
    };
  }
  config.expect('head', 'Conv1x1 on the last feature (key classifier)');
  const classifier = new Conv2d(trunk.featureLevels.at(-1)?.channels ?? 0, classes, { kernelSize: 1 });
  return {
    ...built,
    state: new Map([...built.state, ...entriesOf(classifier, (key) => `classifier.${key}`)]),
    run: (inputs) => {
      const label = inputs.get('label');
      const image = inputs.get('image');
      if (!label || !image) throw new UnknownCase('a case with a loss needs an image and a label');
      const ctx = new Context({ inputs: { [SEGMENTATION_LABELS]: label } });
      const last = levels(trunk, stages, image, ctx).at(-1) as Tensor;
      const main = functional.pixelCrossEntropy(classifier.run(last, ctx), label);
      const all = [...ctx.aux.values()].map((map) => functional.pixelCrossEntropy(map, label));
      const interim = aten.stack(all).mean();
      // The weighted sum is what the method itself gives a trainer.
      const loss = ctx.losses.reduce((sum, part) => sum.add(part), main);
      return { loss_main: main.view([1]), loss_interim: interim.view([1]), loss: loss.view([1]) };
    },
  };
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  const make = { SPM: matcher, 'SPM framework': framework }[config.get<string>('module')];
  if (!make) throw new UnknownCase(`no builder knows the module '${config.get<string>('module')}' of spm`);
  const built = make(config);
  config.done();
  return built;
}

/** Rows call the model `spm on timm resnet50`; heads for segmentation are not counted. */
function count(row: CountsRow): Record<string, number> {
  const config = new Config(typeof row.config === 'string' ? {} : row.config).ignore('positions', 'channels');
  const text = config.get<string | number>('iterations', 2);
  const iterations = typeof text === 'number' ? text : 2;
  const options = { classes: row.num_classes ?? 150, width: config.get('width'), iterations };
  config.done();
  // The rows count the last norm, which the cases do not have.
  const model = published(row.model.replace(/^spm on timm /, ''), 0);
  return countAdapted(model, graft(model, 'spm', options));
}

export const spm: Builder = { system: 'spm', build, count };
