/** Activations as the configs of cases spell them. */
import { ACTIVATIONS, type ActivationName } from '../../../lib/nn/index.js';
import { UnknownCase } from '../builder.js';

/** Spellings, in lower case and without spaces, that are not our own: the specifications', and transformers'. */
const SPELLINGS: Readonly<Record<string, ActivationName>> = {
  'gelu(erf)': 'gelu',
  'gelu(tanh)': 'gelu_tanh',
  gelu_new: 'gelu_tanh',
  'gelu_new(tanh)': 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  quickgelu: 'quick_gelu',
  'quick_gelu(1.702)': 'quick_gelu',
  swish: 'silu',
};

/** Our name of an activation. @throws UnknownCase for one that we do not have */
export function activationNamed(text: string): ActivationName {
  const plain = text.toLowerCase().replaceAll(' ', '');
  const name = Object.hasOwn(SPELLINGS, plain) ? SPELLINGS[plain] : ACTIVATIONS.find((own) => own === plain);
  if (name === undefined) throw new UnknownCase(`there is no activation '${text}' here`);
  return name;
}
