/** Recognizing a backbone: an adapter is worth nothing on weights other than those it was trained beside. */
import { createHash } from 'node:crypto';
import type { Host } from '../../models/index.js';
import type { Parameter, Buffer as ModuleBuffer } from '../../nn/index.js';
import { noGrad, scope, tensor as makeTensor, type Tensor } from '../../tensor/index.js';
import { AdapterHost } from './host.js';

const SAMPLES = 256;

/**
 * A digest of a backbone's weights: names, shapes, and up to 256 evenly spaced elements of each tensor in float32.
 * The classifier and BatchNorm's counters are left out, since adapters bring their own.
 *
 * @param original gives the backbone's own value of a tensor that an adapter overlays
 */
export function fingerprint(
  model: Host,
  original: (tensor: Parameter | ModuleBuffer) => Tensor = (tensor) => tensor,
): string {
  const digest = createHash('sha256');
  noGrad(() => {
    for (const [name, tensor] of model.namedState()) {
      if (model.isInClassifier(name) || name.endsWith('num_batches_tracked')) continue;
      digest.update(`${name} ${tensor.shape.join('x')}\n`);
      if (tensor.device === 'meta') continue;
      const samples = scope(() => sample(original(tensor).detach()).data());
      digest.update(new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength));
    }
  });
  return `sha256:${digest.digest('hex')}`;
}

function sample(tensor: Tensor): Tensor {
  const numel = tensor.numel();
  const flat = tensor.reshape([-1]);
  if (numel <= SAMPLES) return flat.to('float32');
  const picked = Array.from({ length: SAMPLES }, (_, i) => Math.floor((i * numel) / SAMPLES));
  return flat.indexSelect(0, makeTensor(picked, { dtype: 'int64', device: tensor.device })).to('float32');
}

/** The fingerprint of the backbone itself, whatever adapters are active. */
export function ownFingerprint(model: Host): string {
  const host = AdapterHost.of(model);
  return fingerprint(model, (tensor) => host.originalOf(tensor));
}
