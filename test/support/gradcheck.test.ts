import { expect, test } from 'vitest';
import { applyFunction, randn } from '../../lib/tensor/index.js';
import { gradcheck } from './gradcheck.js';

const inputs = () => [randn([2, 3], { dtype: 'float64', requiresGrad: true })];

test('accepts a right gradient', () => {
  gradcheck((x) => x.sin().mul(x), inputs());
});

test('refuses a wrong gradient and says where', () => {
  const wrong = { name: 'Wrong', forward: (x: never) => [(x as { sin(): never }).sin()], backward: (g: never[]) => g };
  expect(() => {
    gradcheck((x) => (applyFunction(wrong, [x]) as never[])[0] as never, inputs());
  }).toThrow(/element 0 of input 0 has gradient/);
});

test('refuses to check nothing', () => {
  expect(() => {
    gradcheck((x) => x, [randn([2])]);
  }).toThrow('no input requires a gradient');
});
