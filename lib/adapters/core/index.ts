export { Adapter, type HeadChoice } from './adapter.js';
export { averageAdapters } from './average.js';
export {
  affine,
  before,
  delta,
  parallel,
  replace,
  sequential,
  type AffineForm,
  type Composition,
  type DeltaForm,
  type Scale,
} from './compose.js';
export { fingerprint } from './fingerprint.js';
export {
  adapterState,
  loadAdapterState,
  readAdapterFolder,
  saveAdapter,
  startFrom,
  type AdapterConfig,
  type AdapterFolder,
  type SaveOptions,
} from './folder.js';
export { graftMethod, type GraftOptions } from './graft.js';
export { graftFolder, type LoadAdapterOptions } from './load.js';
export { Grafts, type Graft } from './grafts.js';
export { Head, type HeadOptions } from './head.js';
export { AdapterHost } from './host.js';
export type { MergeOptions, MergeReport } from './merge.js';
export { loadMerged, readMerged, saveMerged } from './merged.js';
export type { MergedFile, MergedInfo, MergedModel, SaveMergedOptions } from './merged.js';
export {
  defineMethod,
  learningRate,
  type BackboneParameter,
  type Method,
  type OfficialPart,
  type Rule,
  type SiteQuery,
  type Surroundings,
} from './method.js';
export { matches, selectSites, siteName } from './select.js';
export type { AdapterSummary, SiteSummary } from './summary.js';
export { SharedPart } from './shared_part.js';
