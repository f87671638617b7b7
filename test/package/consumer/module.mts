// A TypeScript program in strict mode: the types that a user meets.
import type { Adapter, Batch, Dataset, EpochRecord, Image, Tensor, TrainerOptions } from 'torchgraft';
import {
  createModel,
  defineMethod,
  functional,
  graft,
  Module,
  noGrad,
  parallel,
  randn,
  scope,
  Trainer,
} from 'torchgraft';
import { z } from 'zod';

class Scaled extends Module {
  override forward(x: Tensor): Tensor {
    return x.mul(0);
  }
}

export const scaled = defineMethod({
  id: 'scaled',
  summary: 'nothing, at every block',
  paper: 'none',
  options: z.strictObject({ scale: z.number().default(1) }),
  rules: ({ scale }) => [{ id: 'block', at: { role: 'block' }, compose: parallel(scale), form: () => new Scaled() }],
});

const model = createModel('cifar_resnet20');
const adapter: Adapter = graft(model, 'lora', { rank: 2 }, { head: { classes: 3 } });
const logits: Tensor = scope(() => noGrad(() => model.run(randn([1, 3, 32, 32]))));
const loss: Tensor = functional.crossEntropy(logits, randn([1, 3]).argmax(1));
const [first]: readonly number[] = logits.shape;
export const total: number = adapter.summary().trainable + (first ?? 0) + Number(loss.item());

export const dataset: Dataset = {
  length: 1,
  classNames: ['a', 'b'],
  labels: [0],
  load: (_index: number): Promise<Image> => Promise.reject(new Error('none')),
  describe: (index) => `image ${index}`,
};
export async function fit(options: TrainerOptions): Promise<EpochRecord | null> {
  return (await new Trainer(options).fit()).best;
}
export const size = (batch: Batch): number => batch.labels.shape[0] ?? 0;

// @ts-expect-error: models go by their names
createModel(20);
