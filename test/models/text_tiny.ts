/** Small text models, for tests that run over all of them. */
import { createCustomTextModel, type TextInputs, type TextModel } from '../../lib/models/index.js';
import { noGrad, randint, randn, tensor } from '../../lib/tensor/index.js';

const t5 = { vocabulary: 30, dim: 16, headDim: 6, hidden: 20, depth: 2, numHeads: 3, buckets: 8, maxDistance: 16 };
const bart = { vocabulary: 30, dim: 16, depth: 2, numHeads: 2, hidden: 20, decoderHidden: 24, positions: 20 };
const roberta = { vocabulary: 30, dim: 16, depth: 2, numHeads: 2, hidden: 20, positions: 24, numClasses: 5 };

export const tinyTexts: readonly { readonly name: string; readonly make: () => TextModel }[] = [
  { name: 't5', make: () => createCustomTextModel('t5', t5) },
  {
    name: 't5 v1.1',
    make: () => createCustomTextModel('t5', { ...t5, decoderDepth: 1, feedForward: 'gated_gelu', tied: false }),
  },
  { name: 'bart', make: () => createCustomTextModel('bart', bart) },
  { name: 'mbart', make: () => createCustomTextModel('mbart', { ...bart, scaleEmbedding: true }) },
  { name: 'roberta', make: () => createCustomTextModel('roberta', roberta) },
];

/** Random weights everywhere, so that nothing is zero or one by its start. */
export function randomizeText(model: TextModel): TextModel {
  noGrad(() => {
    for (const parameter of model.parameters()) {
      const isNorm = parameter.ndim === 1;
      parameter.copy_(
        randn(parameter.shape)
          .mul(isNorm ? 0.1 : 0.3)
          .add(isNorm ? 1 : 0),
      );
    }
  });
  return model.eval();
}

/** Two sequences, the second with padding at its end; ids 2 and up, since 1 is padding. */
export function textInputs(model: TextModel, length = 6): TextInputs {
  const ids = (columns: number) => randint(2, 30, [2, columns], { dtype: 'int64' });
  const attentionMask = tensor(
    [0, 2].map((padding) => Array.from({ length }, (_, i) => (i < length - padding ? 1 : 0))),
    { dtype: 'int64' },
  );
  return { inputIds: ids(length), attentionMask, ...(model.hasDecoder && { decoderInputIds: ids(5) }) };
}
