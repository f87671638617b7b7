/** What a method is: options, and rules made of sites, composition and form. No method knows a backbone. */
import type { z } from 'zod';
import type { Module, Parameter, Role, Site } from '../../nn/index.js';
import type { Composition } from './compose.js';
import type { HeadOptions } from './head.js';

/** Which sites a rule means. All given conditions must hold; an array means any of its members. JSON values only. */
export interface SiteQuery {
  /** A role that the site has. */
  readonly role?: Role | readonly Role[];
  /** Last part of the path: a module's name such as `qkv` or `conv2`, or a slice's such as `q`. */
  readonly name?: string | readonly string[];
  /** Path with `*` for one part and `**` for any number of parts. */
  readonly path?: string | readonly string[];
  /** Whether the site lies inside a block. */
  readonly inBlock?: boolean;
  /** Index of the stage. */
  readonly stage?: number | readonly number[];
  /** Index of the block; in a range, both ends belong to it and negative numbers count from behind the last block. */
  readonly depth?: number | readonly number[] | { readonly from?: number; readonly to?: number };
  /** Smallest side of the kernel, for convolutions. */
  readonly minKernel?: number;
  /** Leaves out sites whose path matches, spelled as in `path`. */
  readonly except?: string | readonly string[];
}

/** What a form may know beyond its own site. */
export interface Surroundings {
  /** The sites of the rule in the model's order, this one among them. */
  readonly sites: readonly Site[];
  /** All sites of the model. */
  readonly all: readonly Site[];
  /**
   * A part of the adapter that several grafts use: made at the first request for `name`, the same one at every later.
   * Its parameters are `shared.<name>.<leaf>`. A form keeps it in a private (#) field, so that it is counted once.
   */
  shared<M extends Module>(name: string, make: () => M): M;
}

/** A tensor of an adapter, for its name in official checkpoints. */
export interface OfficialPart {
  /** Path of the site, without the slice; empty for a shared part. */
  readonly path: string;
  /** The site; absent for a shared part. */
  readonly site?: Site;
  /** Id of the rule, or the name of the shared part. */
  readonly rule: string;
  /** Name inside the form or shared part; `scale` for a composition's learned scale. */
  readonly leaf: string;
}

/** One row of a method: what is set in, where, and how it is combined. */
export interface Rule {
  /** Names the graft in the adapter's tree: `<site path>.<id>.<parameter>`. */
  readonly id: string;
  /** Where; of an array, the union. */
  readonly at: SiteQuery | readonly SiteQuery[];
  readonly compose: Composition;
  /** Builds the graft for one site; throws RangeError, saying what would fit, when it cannot be built there. */
  readonly form: (site: Site, around: Surroundings) => Module;
  /** True for a rule that may match nothing on some backbones. Default false: matching nothing is an error. */
  readonly optional?: boolean;
}

/** A parameter of the backbone, for methods that train some of them. The classifier's are never asked about. */
export interface BackboneParameter {
  /** As in the state dict. */
  readonly name: string;
  readonly parameter: Parameter;
  readonly module: Module;
}

/** A method of adaptation, as data. */
export interface Method<S extends z.ZodObject = z.ZodObject> {
  /** snake_case id, as in `graft(model, 'conv_adapter')`. */
  readonly id: string;
  /** One line: what it does. */
  readonly summary: string;
  /** Authors, title, venue, arXiv number. */
  readonly paper: string;
  readonly options: S;
  /** The rules for a model with these sites; most methods need not look at them. */
  readonly rules: (options: z.output<S>, sites: readonly Site[]) => readonly Rule[];
  /** Backbone parameters that the method trains. Default: none. */
  readonly trains?: (options: z.output<S>) => (parameter: BackboneParameter) => boolean;
  /** What training does to BatchNorm's running statistics unless the user says otherwise. Default `frozen`. */
  readonly bnStats?: 'frozen' | 'update';
  /** `eval`: what belongs to the backbone stays in evaluation mode while grafts and head train. Default `train`. */
  readonly backboneMode?: 'train' | 'eval';
  /** How a new head starts unless the caller says otherwise. Default `default`. */
  readonly headInit?: HeadOptions['init'];
  /** Learning rate to begin with: AdamW, batches of 64, a backbone at the size of CIFAR. Default 0.005. */
  readonly learningRate?: number;
  /**
   * Name of the classifier in the official checkpoints, or of each tensor of the head that an adapter brings
   * (`norm.running_mean`, `linear.weight`, ...). Default: the backbone's own.
   */
  readonly officialHead?: string | ((leaf: string) => string);
  /** Name of a tensor in the official checkpoints; null where they have none. Default: our own names. */
  readonly officialName?: (part: OfficialPart, options: z.output<S>) => string | null;
  /** Further names under which official checkpoints may hold the tensor of an official name. Default: none. */
  readonly officialCopies?: (name: string) => RegExp | null;
}

/** Learning rate where the method states none. */
const DEFAULT_RATE = 0.005;

/** Larger backbones want smaller steps: a tenth from this many parameters on. */
const LARGE = 5_000_000;

/** Learning rate to begin with for a method on a backbone of `parameters` parameters. */
export function learningRate({ learningRate: rate = DEFAULT_RATE }: Method, parameters: number): number {
  return parameters >= LARGE ? rate / 10 : rate;
}

const ID = /^[a-z][a-z0-9]*(_[a-z0-9]+)*$/;

/** Checks a method's declaration and returns it with its types. @throws TypeError for a malformed id */
export function defineMethod<S extends z.ZodObject>(method: Method<S>): Method<S> {
  if (!ID.test(method.id)) throw new TypeError(`method id '${method.id}' is not snake_case`);
  return method;
}
