import { z } from 'zod';
import { defineMethod } from './core/index.js';

/** Only the head is trained. The baseline that every adapter must beat. */
export const linearProbe = defineMethod({
  id: 'linear_probe',
  summary: 'trains the head only',
  paper: 'Alain and Bengio, Understanding intermediate layers using linear classifier probes, arXiv 1610.01644',
  options: z.strictObject({}),
  rules: () => [],
  learningRate: 0.1,
});
