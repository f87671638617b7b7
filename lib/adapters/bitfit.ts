import { z } from 'zod';
import { defineMethod } from './core/index.js';

/**
 * Every parameter of the backbone whose name contains `bias` is trained, besides the head: those of norms,
 * projections, convolutions and the patch embedding. 102,912 on ViT-B/16. Zaken et al., ACL 2022, arXiv 2106.10199.
 */
export const bitfit = defineMethod({
  id: 'bitfit',
  summary: 'trains the biases of the backbone',
  paper: 'Zaken, Goldberg, Ravfogel, BitFit, ACL 2022, arXiv 2106.10199',
  options: z.strictObject({}),
  rules: () => [],
  trains:
    () =>
    ({ name }) =>
      name.includes('bias'),
  learningRate: 0.03,
});
