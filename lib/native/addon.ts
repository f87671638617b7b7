import { native as loaded } from './load.js';
import type { NativeAddon } from './types.js';

/** The loaded addon. Everything above `lib/native/` reaches LibTorch through this object only. */
export const native: NativeAddon = loaded;
