// Charts, drawn by uPlot, in the page's colours. Each has a caption, for who cannot see it.

import { h } from "./dom.js";

const charts = new Set();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((one) => one.redraw()));

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

/** A figure with a chart. `options(colour)` are uPlot's, but for width, height and axes' looks. */
export class Chart {
  constructor({ label, xLabel, yLabel, height = 240, options }) {
    this.box = h("div", { class: "plot" });
    this.told = h("figcaption", {});
    this.element = h("figure", { class: "chart", role: "group", "aria-label": label }, this.box, this.told);
    this.height = height;
    this.options = () => {
      const stroke = () => colour("--faint"), line = { stroke: () => colour("--line"), width: 1 };
      const axis = (words, more) => ({ stroke, grid: line, ticks: line, label: words, labelSize: 22, labelGap: 2,
        font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", size: 38, ...more });
      return { axes: [axis(xLabel), axis(yLabel, { size: 52 })], cursor: { drag: { x: false, y: false } },
        legend: { markers: { width: 0, fill: (u, i) => u.series[i].stroke?.() } }, ...options(colour) };
    };
    new ResizeObserver(() => this.fit()).observe(this.box);
  }

  show(data, words) {
    this.data = data;
    this.told.textContent = words;
    if (this.plot) this.plot.setData(data);
    else this.fit();
  }

  fit() {
    const width = Math.floor(this.box.clientWidth);
    if (!width || !this.data) return;
    if (this.plot) {
      if (this.plot.width !== width) this.plot.setSize({ width, height: this.height });
      return;
    }
    this.plot = new window.uPlot({ ...this.options(), width, height: this.height }, this.data, this.box);
    charts.add(this);
  }

  redraw() {
    if (this.plot && this.box.isConnected) this.plot.redraw(false, true);
  }

  /** Gives up what the library holds. */
  close() {
    charts.delete(this);
    this.plot?.destroy();
    this.plot = undefined;
  }
}

/** The looks of one line or kind; `name` is one of the colours of style.css. */
export function kind(label, name, more = {}) {
  return { label, stroke: () => colour(`--${name}`), fill: undefined, width: 2, points: { show: false },
    value: (_, v) => (v === null || v === undefined ? "–" : v.toFixed(2)), ...more };
}

/** Half-transparent columns that stand behind each other. */
export function columns(label, name) {
  return kind(label, name, { fill: () => `${colour(`--${name}`)}66`, width: 1,
    paths: window.uPlot.paths.bars({ size: [1], align: 1, gap: 1 }), value: (_, v) => (v == null ? "–" : `${v.toFixed(1)} %`) });
}

/** Draws the line on which both axes are equal. */
export function diagonal(u) {
  const { ctx, bbox } = u, at = (value, axis) => u.valToPos(value, axis, true);
  const low = Math.max(u.scales.x.min, u.scales.y.min), high = Math.min(u.scales.x.max, u.scales.y.max);
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.beginPath();
  ctx.strokeStyle = colour("--faint");
  ctx.setLineDash([2 * devicePixelRatio, 4 * devicePixelRatio]);
  ctx.moveTo(at(low, "x"), at(low, "y"));
  ctx.lineTo(at(high, "x"), at(high, "y"));
  ctx.stroke();
  ctx.restore();
}

/** Draws the dots of one kind of a scatter. */
export function dots(name, size) {
  return (u, series) => {
    const { ctx } = u, ratio = devicePixelRatio;
    window.uPlot.orient(u, series, (_, __, ___, xScale, yScale, toX, toY, left, top, wide, high) => {
      const [xs, ys] = u.data[series];
      ctx.save();
      ctx.beginPath();
      ctx.rect(left, top, wide, high);
      ctx.clip();
      ctx.fillStyle = colour(`--${name}`);
      for (let i = 0; i < xs.length; i++) {
        ctx.beginPath();
        ctx.arc(toX(xs[i], xScale, wide, left), toY(ys[i], yScale, high, top), size * ratio, 0, 7);
        ctx.fill();
      }
      ctx.restore();
    });
    return null;
  };
}
