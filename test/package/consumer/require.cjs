// CommonJS: the same names as in an ES module, and a tensor that computes.
const tg = require('torchgraft');

import('torchgraft').then((module) => {
  const missing = Object.keys(module).filter(
    (name) => name !== 'default' && name !== 'module.exports' && !(name in tg),
  );
  const same = module.Tensor === tg.Tensor;
  const sum = tg.scope(() => tg.ones([2, 3]).sum().item());
  const model = tg.createModel('cifar_resnet20');
  const adapter = tg.graft(model, 'lora', { rank: 2 }, { head: { classes: 3 } });
  const shape = tg.scope(() => tg.noGrad(() => model.run(tg.randn([1, 3, 32, 32])).shape));
  console.log(
    JSON.stringify({ file: require.resolve('torchgraft'), missing, same, sum, shape, method: adapter.method.id }),
  );
});
