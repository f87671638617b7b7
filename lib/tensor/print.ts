import type { Tensor } from './tensor.js';
export function format(t: Tensor): string {
  return `tensor(${JSON.stringify(t.tolist())})`;
}
