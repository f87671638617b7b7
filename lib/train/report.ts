/**
 * The HTML report of one or several runs: one file that needs nothing from elsewhere, so that it can be mailed, archived
 * and opened without a network.
 */
import type Sharp from 'sharp';
import { requirePackage, packageVersion } from '../native/packages.js';
import { escapeHtml, lineChart, scatterChart } from './charts.js';
import { duration, percent } from './progress.js';
import { headline, type EpochRecord, type Score } from './events.js';

const sharp = (): typeof Sharp => requirePackage('sharp') as typeof Sharp;

/** One trained method in the report. */
export interface ReportRun {
  readonly name: string;
  readonly trainable: number;
  readonly total: number;
  /** Final score on held-out samples, 0 to 1: the accuracy, or what `Report.score` names. */
  readonly accuracy: number;
  readonly seconds: number;
  readonly history: readonly EpochRecord[];
}

/** One image with what the model made of it. */
export interface ReportSample {
  /** `data:image/...;base64,...`; see `imageDataUri`. */
  readonly image: string;
  readonly label: string;
  readonly predicted: string;
  /** Probability of the prediction, 0 to 1. */
  readonly confidence: number;
}

/** What an HTML report shows. */
export interface Report {
  readonly title: string;
  /** One paragraph on what was done. */
  readonly summary: string;
  readonly runs: readonly ReportRun[];
  /** What the score is, such as `mIoU`. Default `accuracy`. */
  readonly score?: string;
  /** Scores by class, as a table. */
  readonly classes?: { readonly head: readonly string[]; readonly rows: readonly (readonly string[])[] };
  /** `matrix[t][p]`: images of class t taken for class p. */
  readonly confusion?: {
    readonly of: string;
    readonly classNames: readonly string[];
    readonly matrix: readonly (readonly number[])[];
  };
  readonly samples?: readonly ReportSample[];
  /** Settings, listed as name and value. */
  readonly settings?: Readonly<Record<string, string | number | boolean | null>>;
}

/** The report as an HTML document. All text is escaped; images must be data URIs. Throws a TypeError if one is not. */
export function htmlReport(report: Report): string {
  const { score = 'accuracy' } = report;
  const sections = [
    `<p>${escapeHtml(report.summary)}</p>`,
    section('Results', results(report.runs, score)),
    report.runs.length > 1
      ? section(`${capital(score)} against trainable parameters`, tradeOff(report.runs, score))
      : '',
    section('Curves', curves(report.runs, score)),
    report.classes === undefined ? '' : section('Classes', table(report.classes.head, report.classes.rows)),
    report.confusion === undefined
      ? ''
      : section(`Confusion matrix: ${report.confusion.of}`, confusion(report.confusion)),
    report.samples === undefined ? '' : section('Sample predictions', samples(report.samples)),
    report.settings === undefined ? '' : section('Settings', settings(report.settings)),
  ];
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">' +
    '<meta name="viewport" content="width=device-width, initial-scale=1">' +
    // Whatever slips into the page, the browser fetches and runs nothing.
    `<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">` +
    `<title>${escapeHtml(report.title)}</title><style>${style}</style></head>\n` +
    `<body><h1>${escapeHtml(report.title)}</h1>\n${sections.filter((s) => s !== '').join('\n')}\n` +
    `<footer>torchgraft ${escapeHtml(packageVersion())}</footer></body></html>\n`
  );
}

/** Bytes of an image, row by row, 3 per pixel (red, green, blue). */
export interface Pixels {
  readonly data: Uint8Array;
  readonly width: number;
  readonly height: number;
}

/**
 * An image as a data URI, about `side` pixels on its longer side (default 96): a small one as a PNG, enlarged by a whole
 * factor without smoothing, a large one shrunk to a JPEG.
 */
export async function imageDataUri({ data, width, height }: Pixels, side = 96): Promise<string> {
  if (data.length !== 3 * width * height)
    throw new RangeError(
      `imageDataUri: ${width} x ${height} RGB needs ${3 * width * height} bytes, got ${data.length}`,
    );
  const image = sharp()(data, { raw: { width, height, channels: 3 } });
  const factor = Math.floor(side / Math.max(width, height));
  if (factor < 1) {
    const jpeg = await image.resize(side, side, { fit: 'inside' }).jpeg({ quality: 80 }).toBuffer();
    return `data:image/jpeg;base64,${jpeg.toString('base64')}`;
  }
  const png = await image
    .resize(width * factor, height * factor, { kernel: 'nearest' })
    .png()
    .toBuffer();
  return `data:image/png;base64,${png.toString('base64')}`;
}

const section = (title: string, body: string): string => `<section><h2>${escapeHtml(title)}</h2>${body}</section>`;

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const cells = (tag: string, row: readonly string[]): string =>
    row.map((c) => `<${tag}>${escapeHtml(c)}</${tag}>`).join('');
  const body = rows.map((row) => `<tr>${cells('td', row)}</tr>`).join('');
  return `<table><thead><tr>${cells('th', head)}</tr></thead><tbody>${body}</tbody></table>`;
}

const capital = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);

function results(runs: readonly ReportRun[], score: string): string {
  return table(
    ['method', 'trainable', 'of all', score, 'time'],
    runs.map((r) => [
      r.name,
      r.trainable.toLocaleString('en-US'),
      percent(r.trainable / r.total, 2),
      percent(r.accuracy),
      duration(r.seconds),
    ]),
  );
}

function tradeOff(runs: readonly ReportRun[], score: string): string {
  const points = runs.map((r) => ({ name: r.name, x: r.trainable, y: r.accuracy }));
  return scatterChart(points, {
    title: score,
    xLabel: 'trainable parameters (logarithmic)',
    yLabel: `held-out ${score}`,
    logX: true,
    formatY: (y) => percent(y, 0),
  });
}

function curves(runs: readonly ReportRun[], score: string): string {
  const single = runs.length === 1;
  const over = (kind: 'train' | 'val', figure: (score: Score) => number) =>
    runs
      .map((r) => ({
        name: single ? kind : r.name,
        points: r.history.flatMap((e): [number, number][] => {
          const measured = e[kind] === null ? NaN : figure(e[kind]);
          return Number.isNaN(measured) ? [] : [[e.epoch, measured]];
        }),
      }))
      .filter((s) => s.points.length > 0);
  const axes = (title: string, yLabel: string) => ({ title, xLabel: 'epoch', yLabel });
  const share = { formatY: (y: number) => percent(y, 0) };
  const loss = (s: Score): number => s.loss;
  const main = (s: Score): number => headline(s).value;
  const isPlain = score === 'accuracy';
  if (single)
    return (
      lineChart([...over('train', loss), ...over('val', loss)], axes('loss', isPlain ? 'cross-entropy' : 'loss')) +
      lineChart([...(isPlain ? over('train', main) : []), ...over('val', main)], {
        ...axes(score, isPlain ? 'top-1' : score),
        ...share,
      })
    );
  return (
    lineChart(over('train', loss), axes('training loss', isPlain ? 'cross-entropy' : 'loss')) +
    lineChart(over('val', main), { ...axes(`validation ${score}`, isPlain ? 'top-1' : score), ...share })
  );
}

function confusion({ classNames, matrix }: NonNullable<Report['confusion']>): string {
  const name = (i: number): string => escapeHtml(classNames[i] ?? String(i));
  const head = matrix.map((_, i) => `<th scope="col">${name(i)}</th>`).join('');
  const rows = matrix.map((row, t) => {
    const sum = row.reduce((a, b) => a + b, 0);
    const cells = row.map((count, p) => {
      const share = sum === 0 ? 0 : count / sum;
      const rgb = p === t ? '0,114,178' : '213,94,0';
      return `<td class="${share > 0.55 ? 'cell dark' : 'cell'}" style="background:rgba(${rgb},${share.toFixed(3)})">${count === 0 ? '' : count}</td>`;
    });
    return `<tr><th scope="row">${name(t)}</th>${cells.join('')}</tr>`;
  });
  return `<p>Rows: true class; columns: predicted class.</p><div class="wide"><table class="confusion"><thead><tr><th></th>${head}</tr></thead><tbody>${rows.join('')}</tbody></table></div>`;
}

function samples(list: readonly ReportSample[]): string {
  const figures = list.map((s) => {
    if (!/^data:image\/[a-z+]+;base64,[A-Za-z0-9+/=]*$/.test(s.image))
      throw new TypeError('htmlReport: the image of a sample must be a base64 data URI; use imageDataUri');
    const isRight = s.label === s.predicted;
    const caption = isRight ? escapeHtml(s.label) : `${escapeHtml(s.predicted)}, is ${escapeHtml(s.label)}`;
    return `<figure class="${isRight ? 'right' : 'wrong'}"><img alt="${escapeHtml(s.label)}" src="${s.image}"><figcaption>${caption}<br>${percent(s.confidence, 0)}</figcaption></figure>`;
  });
  return `<div class="samples">${figures.join('')}</div>`;
}

function settings(values: NonNullable<Report['settings']>): string {
  return table(
    ['setting', 'value'],
    Object.entries(values).map(([k, v]) => [k, String(v)]),
  );
}

const style = `
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:68rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse}th,td{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}
svg{max-width:33rem;width:100%;font:11px system-ui,sans-serif}svg .grid{stroke:#e4e4e4}svg .title{font-weight:600;font-size:13px}
.wide{overflow-x:auto}.confusion td{min-width:1.6rem;padding:.2rem .4rem;text-align:center;border:1px solid #eee}.confusion .dark{color:#fff}
.samples{display:flex;flex-wrap:wrap;gap:.6rem}figure{margin:0;width:6.5rem;text-align:center;font-size:.8rem}
figure img{width:6rem;height:6rem;object-fit:contain;border:3px solid #009e73;border-radius:4px}figure.wrong img{border-color:#d55e00}
footer{margin-top:3rem;color:#777;font-size:.85rem}`;
