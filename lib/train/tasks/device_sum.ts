/** A running sum of scalars that stays on their device until it is asked for. */
import { keep, scope, type Tensor } from '../../tensor/index.js';

export class DeviceSum implements Disposable {
  #sum: Tensor | null = null;

  /** Adds a scalar, in float64. */
  add(value: Tensor): void {
    const own = scope(() => keep(value.detach().double().clone()));
    if (this.#sum === null) {
      this.#sum = own;
      return;
    }
    this.#sum.add_(own);
    own.dispose();
  }

  /** The sum; 0 of nothing. */
  value(): number {
    return this.#sum === null ? 0 : Number(this.#sum.item());
  }

  [Symbol.dispose](): void {
    this.#sum?.dispose();
    this.#sum = null;
  }
}
