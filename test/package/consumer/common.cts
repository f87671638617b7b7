// The same in CommonJS, by both ways of writing it.
import tg = require('torchgraft');
import { createModel, type Backbone } from 'torchgraft';

const model: Backbone = createModel('cifar_resnet20');
export const adapter: tg.Adapter = tg.graft(model, 'lora', { rank: 2 }, { head: { classes: 3 } });
export const sum: number = tg.scope(() => Number(tg.ones([2]).sum().item()));
