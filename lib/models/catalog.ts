/** Families of models by name: building, listing, facts. One catalog for image backbones, one for text models. */
import type { z } from 'zod';
import { scope, withDefaults } from '../tensor/index.js';
import type { Family } from './family.js';
import type { Host } from './host.js';
import { parseOptions, suggestion } from './options.js';

type Options = Readonly<Record<string, unknown>>;

/** Some families of models. */
export class Catalog<M extends Host> {
  /** @param lister what lists all names, for messages */
  constructor(
    private readonly families: readonly Family<z.ZodObject, M>[],
    private readonly lister: string,
  ) {}

  /** Names of all models, or of one family. @throws RangeError for an unknown family */
  list(family?: string): string[] {
    const chosen = family === undefined ? this.families : [this.family(family)];
    return chosen.flatMap(({ variants }) => Object.keys(variants));
  }

  /** Ids of the families. */
  ids(): string[] {
    return this.families.map(({ id }) => id);
  }

  /** The family of that id. @throws RangeError that lists those there are */
  family(id: string): Family<z.ZodObject, M> {
    const found = this.families.find((family) => family.id === id);
    if (found) return found;
    throw new RangeError(`there is no model family '${id}'; there are ${this.ids().join(', ')}`);
  }

  /** A published model; `options` say what differs. @throws RangeError for an unknown name, with the nearest */
  create(name: string, options: Options): M {
    const { family, resolved } = this.#resolve(name, options);
    const model = build(family, name, resolved);
    model.options = options;
    return model;
  }

  /** A model of a family with a full set of options. */
  createCustom(id: string, options: Options, name: string): M {
    const family = this.family(id);
    return build(family, name, parseOptions(family.options, options, name));
  }

  /** A published model on the meta device, without memory, and what it is made from. */
  describe(name: string, options: Options): { family: Family<z.ZodObject, M>; options: Options; model: M } {
    const { family, resolved } = this.#resolve(name, options);
    return { family, options: resolved, model: withDefaults({ device: 'meta' }, () => family.create(name, resolved)) };
  }

  #resolve(name: string, options: Options): { family: Family<z.ZodObject, M>; resolved: Record<string, unknown> } {
    for (const family of this.families) {
      const variant = Object.hasOwn(family.variants, name) ? family.variants[name] : undefined;
      if (variant === undefined) continue;
      return { family, resolved: parseOptions(family.options, { ...variant, ...options }, name) };
    }
    throw new RangeError(`there is no model '${name}'${suggestion(name, this.list())}; ${this.lister} names all`);
  }
}

/**
 * In a scope, because the tensors that parameters are made from share their elements: uncollected, they would keep the
 * old ones alive when the model is moved or loaded.
 */
function build<M extends Host>(family: Family<z.ZodObject, M>, name: string, options: Record<string, unknown>): M {
  return scope(() => family.create(name, options));
}

/** Number of parameters. */
export function parameterCount(model: Host): number {
  return model.parameters().reduce((sum, parameter) => sum + parameter.numel(), 0);
}
