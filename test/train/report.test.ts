import { describe, expect, it } from 'vitest';
import sharp from 'sharp';
import { lineChart, scatterChart } from '../../lib/train/charts.js';
import { htmlReport, imageDataUri, type Report } from '../../lib/train/report.js';

const evil = `<script>alert("x")</script>&'`;
const escaped = '&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#39;';

const history = [1, 2, 3].map((epoch) => ({
  epoch,
  step: 10 * epoch,
  lr: 0.01,
  train: { loss: 1 / epoch, accuracy: 0.3 * epoch, samples: 100 },
  val: { loss: 1.1 / epoch, accuracy: 0.25 * epoch, samples: 50 },
}));

async function example(name: string): Promise<Report> {
  const image = await imageDataUri({ data: new Uint8Array(2 * 2 * 3).fill(200), width: 2, height: 2 });
  const run = { name, trainable: 650, total: 270_000, accuracy: 0.75, seconds: 12, history };
  return {
    title: name,
    summary: name,
    runs: [run, { ...run, name: 'full', trainable: 269_722 }],
    confusion: {
      of: name,
      classNames: [name, 'b'],
      matrix: [
        [5, 1],
        [0, 4],
      ],
    },
    samples: [{ image, label: name, predicted: 'b', confidence: 0.7 }],
    settings: { [name]: name, seed: 0 },
  };
}

describe('htmlReport', () => {
  it('needs nothing from elsewhere', async () => {
    const html = htmlReport(await example('signs'));
    const addresses = [...html.matchAll(/(?:src|href|action|data|poster|srcset)\s*=\s*"([^"]*)"/g)].map((m) => m[1]!);
    expect(addresses.length).toBeGreaterThan(0);
    for (const address of addresses) expect(address).toMatch(/^data:image\//);
    expect(html).not.toMatch(/<script|<link|<iframe|<object|@import|url\(|https?:\/\//);
    expect(html).toContain(`default-src 'none'`);
  });

  it('shows curves, trade-off, confusion matrix and samples', async () => {
    const html = htmlReport(await example('signs'));
    for (const text of [
      'Accuracy against trainable parameters',
      'training loss',
      'validation accuracy',
      'Confusion matrix',
      'Sample predictions',
      '269,722',
      '75.0%',
    ])
      expect(html).toContain(text);
    expect(html.match(/<svg/g)).toHaveLength(3);
    expect(html.match(/<polyline/g)).toHaveLength(4);
    expect(html.match(/<figure class="wrong">/g)).toHaveLength(1);
  });

  it('escapes every text', async () => {
    const html = htmlReport(await example(evil));
    expect(html).not.toContain('<script>');
    // title twice, summary, results, 2 legends, point names, tooltips, confusion (title, row, column), sample (2), settings (2)
    expect(html.split(escaped).length).toBeGreaterThan(12);
  });

  it('refuses images that are no data URIs', async () => {
    const report = await example('signs');
    const samples = [{ ...report.samples![0]!, image: 'http://elsewhere/x.png' }];
    expect(() => htmlReport({ ...report, samples })).toThrow(/must be a base64 data URI/);
  });

  it('shows the score of another task, and classes as a table, where something is not measured too', async () => {
    const { runs, ...rest } = await example('signs');
    const detected = history.map((e) => ({
      ...e,
      train: { ...e.train, accuracy: NaN },
      val: { loss: NaN, accuracy: NaN, samples: 50, metrics: { AP: 0.2 * e.epoch, AP50: 0.3 * e.epoch } },
    }));
    const classes = { head: ['class', 'AP'], rows: [['cat & dog', '12.0 %']] };
    const html = htmlReport({ ...rest, score: 'AP', classes, runs: [{ ...runs[0]!, history: detected }] });
    expect(html).toContain('<th>AP</th>');
    expect(html).toContain('cat &amp; dog');
    expect(html).not.toContain('NaN');
    // Training loss, and the precisions.
    expect(html.match(/<polyline/g)).toHaveLength(2);
    const two = htmlReport({ ...rest, score: 'AP', runs: runs.map((run) => ({ ...run, history: detected })) });
    expect(two).toContain('AP against trainable parameters');
    expect(two).toContain('validation AP');
  });

  it('draws a single run as train against validation', async () => {
    const { runs, ...rest } = await example('signs');
    const html = htmlReport({ ...rest, runs: [runs[0]!] });
    expect(html).toContain('>train<');
    expect(html).toContain('>val<');
    expect(html).not.toContain('Accuracy against trainable parameters');
  });
});

describe('imageDataUri', () => {
  const decode = (uri: string) =>
    sharp(Buffer.from(uri.split(',')[1]!, 'base64'))
      .raw()
      .toBuffer({ resolveWithObject: true });

  it('enlarges small images without smoothing', async () => {
    const data = new Uint8Array([255, 0, 0, 0, 255, 0]);
    const uri = await imageDataUri({ data, width: 2, height: 1 }, 6);
    expect(uri).toMatch(/^data:image\/png/);
    const { data: shown, info } = await decode(uri);
    expect([info.width, info.height]).toEqual([6, 3]);
    expect([...shown.subarray(0, 18)]).toEqual([255, 0, 0, 255, 0, 0, 255, 0, 0, 0, 255, 0, 0, 255, 0, 0, 255, 0]);
  });

  it('shrinks large ones, and refuses sizes that do not fit', async () => {
    const uri = await imageDataUri({ data: new Uint8Array(200 * 100 * 3), width: 200, height: 100 });
    const { info } = await decode(uri);
    expect([info.width, info.height]).toEqual([96, 48]);
    await expect(imageDataUri({ data: new Uint8Array(5), width: 2, height: 1 })).rejects.toThrow(
      /needs 6 bytes, got 5/,
    );
  });
});

describe('charts', () => {
  const axes = { title: 't', xLabel: 'x', yLabel: 'y' };

  it('hold with no points, one point, equal points, and numbers that are not finite', () => {
    for (const points of [
      [],
      [[1, 2]],
      [
        [1, 2],
        [1, 2],
      ],
      [
        [1, NaN],
        [2, 3],
        [3, Infinity],
      ],
    ] as [number, number][][]) {
      const svg = lineChart([{ name: 's', points }], axes);
      expect(svg).not.toMatch(/NaN|Infinity|undefined/);
    }
    expect(scatterChart([{ name: 'zero', x: 0, y: 1 }], { ...axes, logX: true })).not.toMatch(/NaN|Infinity/);
  });

  it('place larger values further right and up', () => {
    const svg = scatterChart(
      [
        { name: 'a', x: 100, y: 1 },
        { name: 'b', x: 10_000, y: 2 },
      ],
      { ...axes, logX: true },
    );
    const [a, b] = [...svg.matchAll(/<circle cx="([\d.]+)" cy="([\d.]+)"/g)].map((m) => [Number(m[1]), Number(m[2])]);
    expect(b![0]).toBeGreaterThan(a![0]!);
    expect(b![1]).toBeLessThan(a![1]!);
  });
});
