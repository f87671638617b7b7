/** Representation separation: its three parts alone, and all of it on a vision transformer. */
import {
  AdaptiveSeparation,
  DiscriminativeAttention,
  type Regions,
  RepresentationSeparation,
  TwoPathways,
} from '../../../lib/systems/index.js';
import type { Tensor } from '../../../lib/tensor/index.js';
import { bare, type Built, type Builder, Config, entriesOf, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { published, vitOf } from './timm_backbones.js';

const regions = ({ seg, attention, region, regionLogits }: Regions): Record<string, Tensor> => ({
  seg,
  attention,
  region,
  region_logits: regionLogits,
});

function pathways(config: Config): Built {
  const module = new TwoPathways(config.get('channels'), config.get('width'), config.get('taps'));
  // The taps are called x0, x1, ..., shallowest first.
  const run: Built['run'] = (inputs) => {
    const taps = Array.from({ length: inputs.size }, (_, j) => inputs.get(`x${j}`) as Tensor);
    return { ...module.fuse(taps) };
  };
  return { module, state: entriesOf(module), run };
}

function attention(config: Config): Built {
  const module = new DiscriminativeAttention(config.get('width'), config.get('num_classes'));
  return { module, state: entriesOf(module), run: (inputs) => regions(module.attend(soleInput(inputs))) };
}

function whole(config: Config): Built {
  config.expect('backbone', 'timm vit');
  const vit = new Config({ num_classes: 1, ...config.get<Record<string, unknown>>('backbone_config') });
  const backbone = vitOf(vit);
  vit.done();
  const weights = ['attention_loss_weight', 'region_loss_weight'].map((key) => config.get<number | null>(key, null));
  const [attentionWeight, regionWeight] = weights;
  const module = new RepresentationSeparation(backbone, {
    classes: config.get('num_classes'),
    width: config.get('width'),
    taps: config.get('taps', 4),
    kernel: config.get('kernel', 3),
    attentionWeight: attentionWeight ?? 0.4,
    regionWeight: regionWeight ?? 0.4,
  });
  const run: Built['run'] = (inputs) => {
    const [image, label] = [inputs.get('image'), inputs.get('label')];
    if (!image) throw new UnknownCase('the case has no image');
    const maps = module.maps(image);
    const { fused, separated } = maps;
    if (!label) return { fused, separated, local: maps.local, ...regions(maps) };
    const losses = module.losses(maps, label);
    return {
      loss_seg: losses.seg.view([1]),
      loss_attention: losses.attention.view([1]),
      loss_region: losses.region.view([1]),
      loss: losses.total.view([1]),
    };
  };
  return { module, state: entriesOf(module), run };
}

const parts: Readonly<Record<string, (config: Config) => Built>> = {
  'two-pathway fusion': pathways,
  SASM: (config) => bare(new AdaptiveSeparation(config.get('width'), config.get('kernel', 3))),
  DCA: attention,
  full: whole,
};

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  const make = parts[config.get<string>('module')];
  if (!make) throw new UnknownCase(`no builder knows the module '${config.get<string>('module')}'`);
  const built = make(config);
  config.done();
  return built;
}

/** Parts of the model that are heads: everything that is neither backbone nor counted with it. */
function count(row: CountsRow): Record<string, number> {
  const config = new Config(typeof row.config === 'string' ? {} : row.config);
  const size = config.get<number>('img_size');
  const backbone = published(row.model.replace(/^.* on timm /, ''), 1, { imgSize: size });
  const model = new RepresentationSeparation(backbone, {
    classes: row.num_classes ?? 150,
    width: config.get('width'),
    taps: config.get('taps'),
    kernel: config.get('kernel'),
  });
  config.done();
  const sizeOf = (module: { parameters(): readonly Tensor[] }): number =>
    module.parameters().reduce((sum, p) => sum + p.numel(), 0);
  const total = sizeOf(model);
  return {
    total_parameters: total,
    trainable_parameters: total,
    trainable_without_head: sizeOf(model.backbone),
  };
}

export const representationSeparation: Builder = { system: 'representation_separation', build, count };
