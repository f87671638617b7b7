/** Inline SVG for reports: no script, no font, no style sheet from elsewhere. */

/** Makes text safe inside HTML and SVG, attributes included. */
export function escapeHtml(text: string): string {
  const entities: Readonly<Record<string, string>> = {
    '&': '&amp;',
    '<': '&lt;',
    '>': '&gt;',
    '"': '&quot;',
    "'": '&#39;',
  };
  return text.replace(/[&<>"']/g, (c) => entities[c]!);
}

/** A named line; points whose numbers are not finite are left out. */
export interface Series {
  readonly name: string;
  readonly points: readonly (readonly [x: number, y: number])[];
}

export interface ChartOptions {
  readonly title: string;
  readonly xLabel: string;
  readonly yLabel: string;
  /** Logarithmic x axis; all x must be above 0. Default false. */
  readonly logX?: boolean;
  /** How y values are written; default up to 3 significant digits. */
  readonly formatY?: (y: number) => string;
}

// Colors that stay apart for most color-blind readers (Okabe and Ito), without the yellow that white paper swallows.
const palette = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#444444', '#7f3c8d'];
const color = (i: number): string => palette[i % palette.length]!;

const width = 520;
const height = 300;
const left = 58;
const margin = 14;
/** Room for a legend beside the plot. */
const legendWidth = 112;
const top = 30;
const bottom = 46;

/** Lines over x, such as loss over epochs, with a legend and a tooltip on each point. */
export function lineChart(series: readonly Series[], o: ChartOptions): string {
  const axes = new Axes(
    series.flatMap((s) => s.points),
    o,
    series.length > 1,
  );
  const marks = series.map((s, i) => {
    const places = finite(s.points).map(([x, y]) => ({ x, y, at: axes.place(x, y) }));
    const line = `<polyline fill="none" stroke="${color(i)}" stroke-width="2" points="${places.map((p) => p.at.join(',')).join(' ')}"/>`;
    const dots = places.map((p) => axes.dot(p.at, color(i), `${s.name}: ${axes.formatY(p.y)} at ${number(p.x)}`, 2.5));
    return line + dots.join('');
  });
  return axes.svg(marks.join('') + legend(series.map((s) => s.name)));
}

/** Labeled points, such as accuracy against trainable parameters. */
export function scatterChart(points: readonly { name: string; x: number; y: number }[], o: ChartOptions): string {
  const axes = new Axes(
    points.map((p) => [p.x, p.y]),
    o,
  );
  const taken: (readonly [number, number])[] = [];
  const marks = points.map((p, i) => {
    const at = axes.place(p.x, p.y);
    // Above the point, or below it where another label is in the way.
    const isCrowded = taken.some(([x, y]) => Math.abs(x - at[0]) < 80 && Math.abs(y - at[1]) < 14);
    taken.push(at);
    const isRight = at[0] > width - 130;
    const place = `x="${at[0] + (isRight ? -8 : 8)}" y="${at[1] + (isCrowded ? 16 : -6)}"`;
    const text = `<text ${place} text-anchor="${isRight ? 'end' : 'start'}" fill="${color(i)}">${escapeHtml(p.name)}</text>`;
    return axes.dot(at, color(i), `${p.name}: ${axes.formatY(p.y)}, ${number(p.x)}`, 5) + text;
  });
  return axes.svg(marks.join(''));
}

type Point = readonly [number, number];

const finite = (points: readonly Point[]): Point[] =>
  points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));

class Axes {
  readonly formatY: (y: number) => string;
  /** Right end of the plot. */
  private readonly end: number;
  private readonly x: Scale;
  private readonly y: Scale;

  constructor(
    points: readonly Point[],
    private readonly o: ChartOptions,
    hasLegend = false,
  ) {
    this.end = width - (hasLegend ? legendWidth : margin);
    const shown = finite(points);
    this.x = o.logX === true ? logScale(shown.map((p) => p[0])) : linearScale(shown.map((p) => p[0]));
    this.y = linearScale(shown.map((p) => p[1]));
    this.formatY = o.formatY ?? number;
  }

  place(x: number, y: number): [number, number] {
    const px = left + this.x.share(x) * (this.end - left);
    const py = height - bottom - this.y.share(y) * (height - top - bottom);
    return [Math.round(px * 10) / 10, Math.round(py * 10) / 10];
  }

  dot([x, y]: readonly [number, number], fill: string, tooltip: string, radius: number): string {
    return `<circle cx="${x}" cy="${y}" r="${radius}" fill="${fill}"><title>${escapeHtml(tooltip)}</title></circle>`;
  }

  svg(marks: string): string {
    const { title, xLabel, yLabel } = this.o;
    const baseline = height - bottom;
    const xTicks = this.x.ticks.map((t) => {
      const px = this.place(t, 0)[0];
      return `<line x1="${px}" x2="${px}" y1="${top}" y2="${baseline}" class="grid"/><text x="${px}" y="${baseline + 16}" text-anchor="middle">${number(t)}</text>`;
    });
    const yTicks = this.y.ticks.map((t) => {
      const py = height - bottom - this.y.share(t) * (height - top - bottom);
      return `<line x1="${left}" x2="${this.end}" y1="${py}" y2="${py}" class="grid"/><text x="${left - 6}" y="${py + 4}" text-anchor="end">${escapeHtml(this.formatY(t))}</text>`;
    });
    return (
      `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeHtml(title)}">` +
      `<text x="${left}" y="16" class="title">${escapeHtml(title)}</text>${xTicks.join('')}${yTicks.join('')}` +
      `<text x="${(left + this.end) / 2}" y="${height - 8}" text-anchor="middle">${escapeHtml(xLabel)}</text>` +
      `<text x="14" y="${(top + baseline) / 2}" text-anchor="middle" transform="rotate(-90 14 ${(top + baseline) / 2})">${escapeHtml(yLabel)}</text>` +
      `${marks}</svg>`
    );
  }
}

function legend(names: readonly string[]): string {
  if (names.length < 2) return '';
  const rows = names.map(
    (name, i) =>
      `<rect x="${width - legendWidth + 10}" y="${top + 4 + 16 * i}" width="10" height="10" fill="${color(i)}"/>` +
      `<text x="${width - legendWidth + 24}" y="${top + 13 + 16 * i}">${escapeHtml(name)}</text>`,
  );
  return rows.join('');
}

interface Scale {
  /** Place of a value on the axis, 0 to 1. */
  readonly share: (value: number) => number;
  readonly ticks: readonly number[];
}

function linearScale(values: readonly number[]): Scale {
  const low = values.length === 0 ? 0 : values.reduce((a, b) => Math.min(a, b));
  const high = values.length === 0 ? 1 : values.reduce((a, b) => Math.max(a, b));
  const span = high > low ? high - low : Math.abs(low) || 1;
  const power = 10 ** Math.floor(Math.log10(span / 4));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => span / s <= 5)!;
  const from = Math.floor(low / step + 1e-9) * step;
  const to = Math.max(Math.ceil(high / step - 1e-9) * step, from + step);
  const ticks = Array.from({ length: Math.round((to - from) / step) + 1 }, (_, i) =>
    Number((from + i * step).toPrecision(12)),
  );
  return { share: (v) => (v - from) / (to - from), ticks };
}

function logScale(values: readonly number[]): Scale {
  const logs = values.filter((v) => v > 0).map(Math.log10);
  const from = logs.length === 0 ? 0 : Math.floor(logs.reduce((a, b) => Math.min(a, b)) - 0.05);
  const to = logs.length === 0 ? 1 : Math.max(Math.ceil(logs.reduce((a, b) => Math.max(a, b)) + 0.05), from + 1);
  const ticks = Array.from({ length: to - from + 1 }, (_, i) => Number((10 ** (from + i)).toPrecision(3)));
  return { share: (v) => (Math.log10(Math.max(v, 1e-300)) - from) / (to - from), ticks };
}

/** 25802 as `25.8k`, 0.123456 as `0.123`. */
export function number(value: number): string {
  const size = Math.abs(value);
  if (size >= 1e9) return `${trim(value / 1e9)}G`;
  if (size >= 1e6) return `${trim(value / 1e6)}M`;
  if (size >= 1e4) return `${trim(value / 1e3)}k`;
  return trim(value);
}

const trim = (value: number): string => String(Number(value.toPrecision(3)));
