// The first view: is selection sane, and does it help?

import { Chart, kind } from "./charts.js";
import { facts, h, heading, replace } from "./dom.js";
import { age, count, nats, percent, plain } from "./text.js";

const LEVELS = { good: ["✓", "Good"], odd: ["!", "Look"], bad: ["✕", "Bad"] };
const NONE = { level: "odd", finding: "No super-batch was selected yet.", advice: "This page goes on by itself." };

function badge(level) {
  const [sign, word] = LEVELS[level] ?? LEVELS.odd;
  return h("span", { class: `badge ${level}` }, h("span", { "aria-hidden": "true" }, sign), ` ${word}`);
}

/** The most serious verdict in a line that leads to the others. */
export function verdictLine(verdicts) {
  const [worst = NONE, ...others] = verdicts;
  return h("a", { class: "worst", href: "#overview" }, badge(worst.level), h("span", {}, plain(worst.finding, 200)),
    others.length ? h("span", { class: "small" }, `+${others.length} more`) : null);
}

export class OverviewView {
  static label = "Overview";
  title = "Overview";

  constructor(app) {
    this.app = app;
    this.verdicts = h("ul", { class: "verdicts", "aria-label": "Verdicts" });
    this.figures = h("div", { class: "figures" });
    this.rule = h("div");
    this.chart = learnability("Learnability of picks and of the pool over super-batches");
    this.element = h("section", { class: "view" }, heading("Is selection sane, and does it help?"), this.verdicts, this.figures,
      h("h2", {}, "Picks against the pool"), this.chart.element, this.rule);
  }

  update() {
    const { overview, points, newest } = this.app.state;
    const found = overview.verdicts.length ? overview.verdicts : newest ? [] : [NONE];
    const key = JSON.stringify(found);
    if (key !== this.key) replace(this.verdicts, found.map(verdict));
    this.key = key;
    replace(this.figures, figures(overview, newest, points));
    showLearnability(this.chart, points);
    replace(this.rule, h("h2", {}, "Rule in force"), overview.rule.size
      ? facts([...overview.rule].map(([name, value]) => [plain(name, 60), plain(value, 120)]))
      : h("p", { class: "note" }, "No selection has named one yet."));
  }

  close() { this.chart.close(); }
}

function verdict({ level, finding, advice }) {
  return h("li", { class: `card verdict ${level}` }, badge(level),
    h("div", {}, h("p", { class: "finding" }, plain(finding)), advice ? h("p", { class: "advice" }, plain(advice)) : null));
}

function figures({ totals, weights, unservedWeights, at }, newest, points) {
  const recent = points.slice(-32).filter((one) => one.picked !== undefined && one.pool !== undefined);
  const gain = recent.reduce((sum, one) => sum + one.picked - one.pool, 0) / recent.length;
  const of = (part) => (totals.candidates ? `${percent(part / totals.candidates)} of all candidates` : "");
  return [
    figure("Picks above pool", recent.length ? `${nats(gain, true)} nats` : "–", `mean of the last ${recent.length} super-batches`),
    figure("Weights", weights ? `version ${count(weights.version)}` : "none", weights
      ? [`step ${count(weights.trainerStep)}, ${age(weights.ageSeconds)}`, weights.lagSteps === undefined ? "" : `, ${count(weights.lagSteps)} steps behind`]
      : "no learner scores"),
    unservedWeights && figure("Newest weights", "not served", plain(unservedWeights.reason, 160), "bad"),
    figure("Selections", count(totals.selections), newest ? `last ${age(Math.max(0, at - newest.at))}` : "none yet"),
    figure("Picked", count(totals.picked), of(totals.picked)),
    figure("Prefiltered", count(totals.prefiltered), of(totals.prefiltered)),
    figure("Kept apart", count(totals.keptApart), "too much like a pick"),
    figure("Excluded", count(totals.excluded), of(totals.excluded)),
    figure("Fallbacks", count(totals.fallbacks), "uniform batches, as far as trainers say so", totals.fallbacks ? "odd" : ""),
  ];
}

function figure(name, value, note, level = "") {
  return h("div", { class: `card figure ${level}` }, h("p", { class: "name" }, name), h("p", { class: "value" }, value), h("p", { class: "small" }, note));
}

/** Learnability over super-batches. */
export function learnability(label) {
  return new Chart({ label, xLabel: "super-batch", yLabel: "nats", options: () => ({
    scales: { x: { time: false } },
    series: [{ label: "super-batch" }, kind("picks", "picked"), kind("pool", "dropped", { dash: [6, 4] })],
  }) });
}

export function showLearnability(chart, points) {
  const known = points.filter((one) => one.picked !== undefined || one.pool !== undefined);
  const last = known.at(-1);
  chart.show([known.map((one) => one.superBatch), known.map((one) => one.picked ?? null), known.map((one) => one.pool ?? null)],
    last ? `Mean learnability (what the learner has still to learn, in nats) of the picks and of all that competed. Now ${nats(last.picked)} against ${nats(last.pool)}.`
      : "There are no scores yet.");
}
