import { z } from 'zod';
import { defineMethod } from './core/index.js';

/** Every parameter is trained, and BatchNorm's running statistics follow the data. The other baseline. */
export const full = defineMethod({
  id: 'full',
  summary: 'trains every parameter of the backbone',
  paper: 'full fine-tuning, the baseline of all papers here',
  options: z.strictObject({}),
  rules: () => [],
  trains: () => () => true,
  bnStats: 'update',
  learningRate: 0.001,
});
