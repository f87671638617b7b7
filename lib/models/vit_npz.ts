/**
 * Google's archives of vision transformers (`.npz` of google-research/vision_transformer, the AugReg ones too): Flax's names
 * and layouts, kernels [in, out], heads apart. Dosovitskiy et al., ICLR 2021, arXiv 2010.11929.
 */
import { aten, noGrad, type Tensor } from '../tensor/index.js';

const BLOCK = /^Transformer\/encoderblock_(\d+)\/(.+)$/;

/** Whether these are names of such an archive. */
export function isGoogleVit(state: ReadonlyMap<string, Tensor>): boolean {
  return state.has('Transformer/encoder_norm/scale') || state.has('Transformer/posembed_input/pos_embedding');
}

const LEAVES: Readonly<Record<string, string>> = { scale: 'weight', bias: 'bias', kernel: 'weight' };

/** Kernels [in, out], or convolutions [h, w, in, out], as PyTorch has them. */
function turned(kernel: Tensor): Tensor {
  return kernel.ndim === 4 ? kernel.permute([3, 2, 0, 1]) : kernel.ndim === 2 ? kernel.t() : kernel;
}

/** Query, key or value: [D, heads, d] to [heads d, D], [heads, d] to [heads d]. */
function projection(tensor: Tensor): Tensor {
  const [dim = 0] = tensor.shape;
  return tensor.ndim === 3 ? tensor.reshape([dim, -1]).t() : tensor.reshape([-1]);
}

/**
 * An archive's tensors under timm's names and in PyTorch's layouts. A `pre_logits` layer, which only the files of
 * ImageNet-21k have, is left out, as timm does.
 *
 * @throws Error for a name that such archives do not have
 */
export function fromGoogleVit(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  const out = new Map<string, Tensor>();
  const parts = new Map<string, Tensor>();
  for (const [name, tensor] of state) {
    const leaf = LEAVES[name.slice(name.lastIndexOf('/') + 1)] ?? '';
    const block = BLOCK.exec(name);
    if (name === 'cls') out.set('cls_token', tensor);
    else if (name === 'Transformer/posembed_input/pos_embedding') out.set('pos_embed', tensor);
    else if (/^embedding\/(kernel|bias)$/.test(name)) out.set(`patch_embed.proj.${leaf}`, turned(tensor));
    else if (/^Transformer\/encoder_norm\/(scale|bias)$/.test(name)) out.set(`norm.${leaf}`, tensor);
    else if (/^head\/(kernel|bias)$/.test(name)) out.set(`head.${leaf}`, turned(tensor));
    else if (/^pre_logits\//.test(name)) continue;
    else if (block) {
      const [, index = '', rest = ''] = block;
      const prefix = `blocks.${index}`;
      const attention = /^MultiHeadDotProductAttention_\d+\/(query|key|value|out)\//.exec(rest)?.[1];
      const dense = /^MlpBlock_\d+\/Dense_([01])\//.exec(rest)?.[1];
      const norm = /^LayerNorm_(\d+)\//.exec(rest)?.[1];
      if (attention === 'out')
        out.set(
          `${prefix}.attn.proj.${leaf}`,
          tensor.ndim === 3 ? tensor.reshape([-1, tensor.shape[2] ?? 0]).t() : tensor,
        );
      else if (attention !== undefined) parts.set(`${prefix} ${attention} ${leaf}`, projection(tensor));
      else if (dense !== undefined) out.set(`${prefix}.mlp.fc${Number(dense) + 1}.${leaf}`, turned(tensor));
      else if (norm !== undefined) out.set(`${prefix}.norm${norm === '0' ? 1 : 2}.${leaf}`, tensor);
      else throw unknown(name);
    } else throw unknown(name);
  }
  for (const key of parts.keys()) {
    const [prefix = '', , leaf = ''] = key.split(' ');
    const name = `${prefix}.attn.qkv.${leaf}`;
    if (out.has(name)) continue;
    const three = ['query', 'key', 'value'].map((part) => parts.get(`${prefix} ${part} ${leaf}`));
    if (three.some((part) => !part))
      throw new Error(`the archive lacks one of query, key and value of ${prefix} (${leaf})`);
    out.set(
      name,
      noGrad(() => aten.cat(three as Tensor[], 0)),
    );
  }
  return out;
}

function unknown(name: string): Error {
  return new Error(
    `'${name}' is no name of Google's plain vision transformers; hybrids and scanned blocks are not read`,
  );
}

/**
 * The reverse: timm's names and PyTorch's layouts to an archive's, for `writeNpz`.
 *
 * @param heads number of heads
 * @throws RangeError for a tensor that such archives have no name for, as registers and layer scale
 */
export function toGoogleVit(state: ReadonlyMap<string, Tensor>, heads: number): Map<string, Tensor> {
  const out = new Map<string, Tensor>();
  const named = (name: string, leaf: string, tensor: Tensor): void => {
    const isNorm = /(LayerNorm_\d|encoder_norm)$/.test(name);
    const value = isNorm || tensor.ndim === 1 ? tensor : tensor.ndim === 4 ? tensor.permute([2, 3, 1, 0]) : tensor.t();
    out.set(`${name}/${leaf === 'bias' ? 'bias' : isNorm ? 'scale' : 'kernel'}`, value.contiguous());
  };
  const simple: Readonly<Record<string, string>> = {
    'patch_embed.proj': 'embedding',
    norm: 'Transformer/encoder_norm',
    head: 'head',
  };
  const inBlock: Readonly<Record<string, string>> = {
    norm1: 'LayerNorm_0',
    norm2: 'LayerNorm_2',
    'mlp.fc1': 'MlpBlock_3/Dense_0',
    'mlp.fc2': 'MlpBlock_3/Dense_1',
  };
  for (const [name, tensor] of state) {
    const dot = name.lastIndexOf('.');
    const [path, leaf] = [name.slice(0, Math.max(dot, 0)), name.slice(dot + 1)];
    const [, index, inner = ''] = /^blocks\.(\d+)\.(.+)$/.exec(path) ?? [];
    const block = `Transformer/encoderblock_${index ?? ''}`;
    const attention = `${block}/MultiHeadDotProductAttention_1`;
    if (name === 'cls_token') out.set('cls', tensor);
    else if (name === 'pos_embed') out.set('Transformer/posembed_input/pos_embedding', tensor);
    else if (simple[path] !== undefined) named(simple[path], leaf, tensor);
    else if (index !== undefined && inBlock[inner] !== undefined) named(`${block}/${inBlock[inner]}`, leaf, tensor);
    else if (inner === 'attn.qkv') {
      const [rows = 0] = tensor.shape;
      const dim = rows / 3;
      ['query', 'key', 'value'].forEach((part, i) => {
        const piece = tensor.narrow(0, i * dim, dim);
        const heap = tensor.ndim === 1 ? piece.reshape([heads, -1]) : piece.t().reshape([-1, heads, dim / heads]);
        out.set(`${attention}/${part}/${leaf === 'bias' ? 'bias' : 'kernel'}`, heap.contiguous());
      });
    } else if (inner === 'attn.proj') {
      const value = leaf === 'bias' ? tensor : tensor.t().reshape([heads, -1, tensor.shape[0] ?? 0]);
      out.set(`${attention}/out/${leaf === 'bias' ? 'bias' : 'kernel'}`, value.contiguous());
    } else throw new RangeError(`Google's archives of vision transformers have no place for '${name}'`);
  }
  return out;
}
