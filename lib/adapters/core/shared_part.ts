import { Module } from '../../nn/index.js';

/** Parameters that several grafts read, as `Surroundings.shared` makes them. It computes nothing by itself. */
export abstract class SharedPart extends Module {
  forward(): never {
    throw new Error(`${this.constructor.name} only holds parameters for other modules; it cannot be run`);
  }
}
