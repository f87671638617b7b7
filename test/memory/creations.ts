/** `node creations.js COUNT SIDE`: makes tensors outside of any scope in one synchronous loop; prints how memory went. */
import { memory, ones } from '../../lib/index.js';

const [count = 0, side = 0] = process.argv.slice(2).map(Number);
const rss = (): number => process.memoryUsage.rss() / 2 ** 20;
ones([side, side]);
const base = rss();
let highest = base;
let most = 0;
let sum = 0;
for (let i = 0; i < count; i++) {
  const t = ones([side, side]).mul(i);
  if (i % 500 !== 0) continue;
  sum += Number(t.index(0, 0).item());
  highest = Math.max(highest, rss());
  most = Math.max(most, memory().tensors);
}
process.stdout.write(JSON.stringify({ growth: highest - base, most, sum }));
