/** What the compiler knows about the public functions. These hold if `tsc` accepts this file; `npm run lint` runs it. */
import { expectTypeOf, test } from 'vitest';
import type { evaluate } from '../../lib/index.js';
import {
  applyFunction,
  aten,
  call,
  createModel,
  functional,
  graft,
  grad,
  keep,
  loadAdapter,
  noGrad,
  Parameter,
  scope,
  tensor,
  Trainer,
  zeros,
  type Adapter,
  type Backbone,
  type Batch,
  type DataLoader,
  type DType,
  type Evaluation,
  type FitResult,
  type Module,
  type Site,
  type Tensor,
  type TypedArray,
} from '../../lib/index.js';

test('tensors', () => {
  expectTypeOf(tensor).returns.toEqualTypeOf<Tensor>();
  expectTypeOf<Tensor['shape']>().toEqualTypeOf<number[]>();
  expectTypeOf<Tensor['dtype']>().toEqualTypeOf<DType>();
  expectTypeOf<Tensor['grad']>().toEqualTypeOf<Tensor | null>();
  expectTypeOf<ReturnType<Tensor['data']>>().toEqualTypeOf<TypedArray>();
  expectTypeOf<ReturnType<Tensor['item']>>().toEqualTypeOf<number | bigint | boolean>();
  expectTypeOf<Tensor['add']>().toBeCallableWith(1);
  expectTypeOf<Tensor['logSoftmax']>().toBeCallableWith(1, 'float64');
  expectTypeOf<Parameter>().toExtend<Tensor>();
  // Never called: the compiler alone looks at what is wrong here.
  const wrong = (x: Tensor): void => {
    // @ts-expect-error a misspelled option
    zeros([2], { dtyp: 'float32' });
    // @ts-expect-error no such dtype
    zeros([2], { dtype: 'float31' });
    // @ts-expect-error a string is no shape
    zeros('2');
    // @ts-expect-error an operator's argument of the wrong type
    x.matmul('y');
    // @ts-expect-error the shape is not to be set
    x.shape = [1];
  };
  expectTypeOf(wrong).returns.toBeVoid();
});

test('operators', () => {
  expectTypeOf<Tensor>().not.toHaveProperty('foldUp');
  expectTypeOf(aten.cat).toBeCallableWith([zeros([1])], 0);
  expectTypeOf<ReturnType<typeof aten.relu>>().toEqualTypeOf<Tensor>();
  expectTypeOf(call<Tensor[]>).returns.toEqualTypeOf<Tensor[]>();
});

test('scopes and modes give back what their function returns', () => {
  expectTypeOf(scope(() => 1)).toEqualTypeOf<number>();
  expectTypeOf(scope(() => ({ x: zeros([1]) }))).toEqualTypeOf<{ x: Tensor }>();
  expectTypeOf(noGrad(() => [zeros([1])])).toEqualTypeOf<Tensor[]>();
  expectTypeOf(keep(new Parameter(zeros([1])))).toEqualTypeOf<Parameter>();
  expectTypeOf(grad).returns.toEqualTypeOf<(Tensor | null)[]>();
  expectTypeOf(applyFunction).returns.toEqualTypeOf<Tensor | Tensor[]>();
});

test('models, adapters and training', () => {
  expectTypeOf(createModel).returns.toEqualTypeOf<Backbone>();
  expectTypeOf<Backbone>().toExtend<Module>();
  expectTypeOf<ReturnType<Backbone['sites']>>().toExtend<readonly Site[]>();
  expectTypeOf(loadAdapter).returns.toEqualTypeOf<Adapter>();
  expectTypeOf(graft).returns.toEqualTypeOf<Adapter>();
  expectTypeOf<ReturnType<Adapter['parameters']>>().toEqualTypeOf<Parameter[]>();
  expectTypeOf<ReturnType<Trainer['fit']>>().resolves.toEqualTypeOf<FitResult>();
  expectTypeOf<ReturnType<typeof evaluate>>().resolves.toEqualTypeOf<Evaluation>();
  expectTypeOf<ReturnType<DataLoader['epoch']>>().toExtend<AsyncIterable<Batch>>();
  expectTypeOf(functional.crossEntropy).returns.toEqualTypeOf<Tensor>();
  const wrong = (model: Backbone, adapter: Adapter, train: DataLoader): void => {
    // @ts-expect-error the head is an object with classes, or a word
    graft(model, 'lora', {}, { head: 10 });
    // @ts-expect-error no such optimizer
    new Trainer({ model, adapter, train, epochs: 1, optimizer: { kind: 'adagrad', lr: 1 } });
    // @ts-expect-error the number of epochs is missing
    new Trainer({ model, train });
  };
  expectTypeOf(wrong).returns.toBeVoid();
});
