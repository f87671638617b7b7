// What a user's program does with images: a folder of them, a network, a graft, some epochs, an adapter folder, a prediction.
import { mkdirSync } from 'node:fs';
import sharp from 'sharp';
import * as tg from 'torchgraft';

tg.manualSeed(0);
const colors = { blue: '#2040ff', red: '#ff3020' };
const counts = { train: 16, val: 4 };
for (const [part, count] of Object.entries(counts)) {
  for (const [name, background] of Object.entries(colors)) {
    mkdirSync(`photos/${part}/${name}`, { recursive: true });
    for (let i = 0; i < count; i++) {
      const image = sharp({ create: { width: 40 + i, height: 40, channels: 3, background } });
      await image.jpeg().toFile(`photos/${part}/${name}/${i}.jpg`);
    }
  }
}

const { normalize, resize, toFloat } = tg.transforms;
const transform = [resize([32, 32]), toFloat(), normalize([0.5], [0.25])];
const splits = tg.openImageFolder('photos');
const load = (dataset, shuffle) => new tg.DataLoader({ dataset, batchSize: 4, shuffle, transform });
const model = tg.createModel('cifar_resnet20');
const adapter = tg.graft(model, 'conv_adapter', { reduction: 4 }, { head: { classes: 2 } });
const optimizer = { kind: 'adamw', lr: 0.01 };
const data = { train: load(splits.train, true), val: load(splits.val, false), epochs: 6 };
const { best } = await new tg.Trainer({ model, adapter, ...data, optimizer, bnStats: 'update' }).fit();
adapter.save('colors', { classNames: splits.classNames });
adapter.remove();
tg.loadAdapter(model, 'colors');

model.eval();
const pipeline = new tg.Pipeline(transform);
const input = pipeline.collate([pipeline.apply(await tg.decodeImage('photos/val/red/0.jpg'))]);
const guess = tg.scope(() => tg.noGrad(() => model.run(input).argmax(1).item()));
console.log(JSON.stringify({ accuracy: best.val.accuracy, guess: splits.classNames[guess] }));
