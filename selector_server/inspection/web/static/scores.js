// The view of scores: over time, as histogram, and learner against reference.

import { Chart, columns, diagonal, dots, kind } from "./charts.js";
import { h, heading, replace } from "./dom.js";
import { learnability, showLearnability } from "./overview.js";
import { place } from "./pictures.js";
import { Stepper } from "./stepper.js";
import { count, nats } from "./text.js";

const BINS = 30, ROWS = 40, NEAR = 14;

export class ScoresView {
  static label = "Scores";
  title = "Scores";
  seconds = 2;

  constructor(app) {
    this.app = app;
    this.stepper = new Stepper(app);
    this.overTime = learnability("Learnability over super-batches");
    this.histogram = new Chart({ label: "Histogram of scores", xLabel: "score", yLabel: "% of its kind", options: () => ({
      scales: { x: { time: false }, y: { range: (u, low, high) => [0, Math.max(1, high * 1.05)] } },
      series: [{ label: "score" }, columns("picked", "picked"), columns("dropped", "dropped")],
    }) });
    this.scatter = new Chart({ label: "Learner's loss against the reference's", xLabel: "reference's loss (nats)", yLabel: "learner's loss", height: 320,
      options: () => ({ mode: 2, legend: { show: false }, hooks: { drawAxes: [diagonal] }, scales: { x: { time: false }, y: {} },
        cursor: { show: false }, series: [{}, kind("dropped", "dropped", { paths: dots("dropped-dot", 1.6) }), kind("picked", "picked", { paths: dots("picked", 2.6) })] }) });
    this.scatter.box.addEventListener("click", (event) => this.#open(event));
    this.rows = h("tbody");
    this.note = h("p", { class: "note" });
    this.detail = h("div", {}, this.histogram.element,
      h("h2", {}, "Learner against reference"), this.scatter.element, h("h2", {}, "Picks in the order of their draw"), this.note,
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Picks" }, h("table", {}, h("thead", {}, h("tr", {}, ["Pick", "Candidate", "Score", "Learner", "Reference"].map((one) => h("th", { scope: "col" }, one)))), this.rows)));
    this.problem = h("p", { class: "card note", hidden: true });
    this.element = h("section", { class: "view" }, heading("Scores"), h("h2", {}, "Over time"), this.overTime.element,
      h("h2", {}, "One super-batch"), this.stepper.element, this.problem, this.detail);
  }

  async update(now) {
    const { state } = this.app;
    showLearnability(this.overTime, state.points);
    if (!state.newest) return this.fail("No super-batch yet. They appear here by themselves as soon as a trainer asks.");
    const held = !now && this.rows.contains(document.activeElement);
    if (held || (this.shown && !now && state.chosen)) return this.stepper.show(this.shown.point, held && !state.chosen);
    this.shown = await this.app.ask("GetSuperBatch", { superBatch: state.chosen });
    this.problem.hidden = true;
    this.detail.hidden = false;
    this.stepper.show(this.shown.point);
    this.#show(this.shown);
  }

  fail(words) {
    this.problem.textContent = words;
    this.problem.hidden = false;
    this.detail.hidden = true;
    this.stepper.show(undefined);
  }

  close() { for (const one of [this.overTime, this.histogram, this.scatter]) one.close(); }

  #show({ point, fates, scores, learnerLosses, referenceLosses, order }) {
    const of = (fate) => [...fates.keys()].filter((i) => fates[i] === fate);
    const picked = of("picked").sort((a, b) => order[a] - order[b]), dropped = of("dropped");
    const finite = (indices) => indices.map((i) => scores[i]).filter(Number.isFinite);
    this.histogram.show(...histogram(finite(picked), finite(dropped)));
    const drawn = (indices) => indices.filter((i) => Number.isFinite(learnerLosses[i]) && Number.isFinite(referenceLosses[i]));
    this.dots = drawn(picked);
    const xy = (indices) => [indices.map((i) => referenceLosses[i]), indices.map((i) => learnerLosses[i])];
    this.scatter.element.hidden = !learnerLosses.length || !referenceLosses.length;
    this.scatter.show([null, xy(drawn(dropped)), xy(this.dots)],
      "Above the diagonal the learner has something to learn that the reference knows. Picks are the larger dots: press one to open it, or take it from the list.");
    this.note.textContent = picked.length > ROWS ? `The first ${ROWS} of ${count(picked.length)}.` : "";
    replace(this.rows, picked.slice(0, ROWS).map((i) => h("tr", {}, h("td", {}, order[i] ? count(order[i]) : "–"),
      h("td", {}, h("a", { href: place(point.superBatch, i) }, `candidate ${i}`)), [scores, learnerLosses, referenceLosses].map((one) => h("td", {}, nats(one[i]))))));
  }

  /** Opens the pick that is nearest to where the scatter was pressed. */
  #open(event) {
    const { plot } = this.scatter, over = plot.over.getBoundingClientRect();
    let best, distance = NEAR;
    for (const i of this.dots) {
      const x = plot.valToPos(this.shown.referenceLosses[i], "x") + over.left, y = plot.valToPos(this.shown.learnerLosses[i], "y") + over.top;
      const away = Math.hypot(x - event.clientX, y - event.clientY);
      if (away < distance) [best, distance] = [i, away];
    }
    if (best !== undefined) location.hash = place(this.shown.point.superBatch, best);
  }
}

/** A chart's data, and what it shows in words. */
function histogram(picked, dropped) {
  const all = [...picked, ...dropped];
  if (!all.length) return [[[], [], []], "There are no scores in this super-batch."];
  const low = Math.min(...all), width = (Math.max(...all) - low || 1) / BINS;
  const shares = (values) => {
    const bins = new Array(BINS).fill(0);
    for (const one of values) bins[Math.min(BINS - 1, Math.floor((one - low) / width))] += 100 / values.length;
    return bins;
  };
  const mean = (values) => values.reduce((sum, one) => sum + one, 0) / values.length;
  return [[[...Array(BINS).keys()].map((i) => low + i * width), shares(picked), shares(dropped)],
    `Scores of the ${count(picked.length)} picked, ${nats(mean(picked))} on average, and of the ${count(dropped.length)} dropped, ${nats(mean(dropped))}.`];
}
