/** What everything that grafts can be set into has in common, whatever it reads: images, token ids. */
import { applyKeyMap, type KeyMap } from '../checkpoint/index.js';
import { Module, type Site, sitesOf } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';

/** A pretrained network with published sites and a way to read its checkpoints; the adapter engine needs no more. */
export abstract class Host extends Module {
  /** Name in the registry, such as `resnet50`. */
  abstract readonly name: string;
  /** What the model was created with, beyond its name. */
  options: Readonly<Record<string, unknown>> = {};
  /** Path of the classifier, such as `fc`; null for a model that has none, as those that write text. */
  abstract readonly classifier: string | null;

  /** Properties whose modules bear another name in the state dict, such as `{ head: 'classifier' }`. */
  protected readonly renamed: Readonly<Record<string, string>> = {};

  override namedChildren(): [string, Module][] {
    return super.namedChildren().map(([name, child]) => [this.renamed[name] ?? name, child]);
  }

  /**
   * Replaces the classifier by a new one for `numClasses` classes, freshly initialized, on the device and in the dtype
   * of the old one; 0 removes it. Grafts on the old classifier are lost with it.
   */
  abstract resetClassifier(numClasses: number): void;

  /** Puts a classifier that `resetClassifier` has replaced back in its place. */
  restoreClassifier(module: Module): void {
    if (this.classifier === null) return;
    const current = this.getModule(this.classifier);
    const owner = this.getModule(this.classifier.split('.').slice(0, -1).join('.'));
    const property = Object.entries(owner).find(([, value]) => value === current)?.[0];
    if (property === undefined) throw new Error(`${this.name}: no property holds the classifier`);
    Object.assign(owner, { [property]: module });
  }

  /** From the names of this family's published files to this model's. Names that no rule matches stay as they are. */
  readonly keyMap: KeyMap = [];

  /** A published state dict in this model's names; families whose tensors depend on the image size also resample them. */
  convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    return applyKeyMap(this.keyMap, state).tensors;
  }

  /** Whether a name of the state dict, or a module's path, belongs to the classifier. */
  isInClassifier(name: string): boolean {
    return this.classifier !== null && (name === this.classifier || name.startsWith(`${this.classifier}.`));
  }

  /** Whether a name of the state dict, or a module's path, belongs to a part that adapters leave alone. */
  isUntouchable(_name: string): boolean {
    return false;
  }

  /** Whether a name of the family's files belongs to a part that this model has given up. */
  hasGivenUp(_name: string): boolean {
    return false;
  }

  /** All places where grafts may sit, in the order of the modules; sites inside a block carry its stage and depth. */
  sites(): Site[] {
    const sites = sitesOf(this);
    const blocks = new Map(sites.filter((s) => s.path === s.block).map((s) => [s.path, s]));
    return sites.map((s) => {
      const block = s.block === null ? undefined : blocks.get(s.block);
      const { stage, depth } = block ?? {};
      return { ...(stage !== undefined && { stage }), ...(depth !== undefined && { depth }), ...s };
    });
  }

  /** Puts a new part of the model where the rest is: its device, dtype and mode. */
  protected like<M extends Module>(part: M): M {
    const [reference] = this.parameters();
    if (reference) part.to({ dtype: reference.dtype, device: reference.device });
    return part.train(this.training);
  }
}
