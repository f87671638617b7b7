/** One measurement of our side, in a process of its own: `node worker.mjs ROW OPTIONS` prints one line of JSON. */
import { peakRss } from './measure.mjs';

const [row = '', options = '{}'] = process.argv.slice(2);
const given = JSON.parse(options);
const { default: measure } = await import(new URL(`rows/${given.file ?? row}.mjs`, import.meta.url).href);
const result = await measure(given);
console.log(`RESULT ${JSON.stringify({ ...result, rss: peakRss() })}`);
