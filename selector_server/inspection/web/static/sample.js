// The view of one sample: what became of it over steps and epochs.

import { Chart, kind } from "./charts.js";
import { facts, h, heading, replace } from "./dom.js";
import { picture } from "./pictures.js";
import { FATES, REASONS, count, foreign, nats, percent, plain } from "./text.js";

export class SampleView {
  static label = "Sample";
  title = "Sample";
  seconds = 5;

  constructor(app, [superBatch, index]) {
    this.app = app;
    // A sample is named by its place, or by an id, which stays out of the address.
    this.asked = superBatch ? { superBatch: Number(superBatch) || 0, index: Number(index) || 0 } : undefined;
    this.field = h("input", { id: "sample-id", type: "search", autocomplete: "off", spellcheck: "false", maxlength: 512 });
    this.content = h("div", { "aria-live": "polite" });
    this.element = h("section", { class: "view" }, heading("One sample"), h("form", { class: "find", role: "search", onsubmit: (event) => {
      event.preventDefault();
      this.asked = this.field.value ? { id: this.field.value } : undefined;
      this.shown = undefined;
      app.changed();
    } }, h("label", { for: "sample-id" }, "Sample id"), this.field, h("button", { class: "primary" }, "Look up")), this.content);
  }

  async update() {
    if (!this.asked) return this.fail("Enter an id, or open a sample from the pictures or the scores.");
    const sample = await this.app.ask("GetSample", this.asked);
    const key = `${sample.seen} ${sample.sightings.length} ${sample.last?.index} ${sample.id}`;
    if (this.shown === key) return;
    this.shown = key;
    if (sample.id) this.field.value = sample.id;
    this.chart?.close();
    this.chart = undefined;
    replace(this.content, card(sample), sample.sightings.length ? this.#history(sample) : h("p", { class: "note" },
      sample.id ? "Nothing else is kept of it." : "It came without an id, so that there is nothing to know it by when it comes again."));
  }

  fail(words) { replace(this.content, h("p", { class: "card note" }, words)); this.shown = undefined; }

  close() { this.chart?.close(); }

  #history({ sightings }) {
    this.chart = new Chart({ label: "Losses of this sample over time", xLabel: "super-batch", yLabel: "nats", options: () => ({
      scales: { x: { time: false } }, series: [{ label: "super-batch" }, kind("learner", "picked"), kind("reference", "dropped", { dash: [6, 4] }),
        kind("picked", "good", { width: 0, points: { show: true, size: 9, width: 2 } })],
    }) });
    const losses = (name) => sightings.map((one) => one[name] ?? null);
    this.chart.show([losses("superBatch"), losses("learnerLoss"), losses("referenceLoss"),
      sightings.map((one) => (one.fate === "picked" ? one.learnerLoss ?? null : null))],
    "Its losses each time it was seen; circles are where it was picked.");
    const cells = (one) => [count(one.superBatch), one.trainerStep === undefined ? "–" : count(one.trainerStep), FATES[one.fate] ?? "–", nats(one.learnerLoss), nats(one.referenceLoss)];
    return [h("h2", {}, "Over time"), this.chart.element, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Sightings" }, h("table", {},
      h("thead", {}, h("tr", {}, ["Super-batch", "Step", "Fate", "Learner", "Reference"].map((one) => h("th", { scope: "col" }, one)))),
      h("tbody", {}, sightings.toReversed().map((one) => h("tr", {}, cells(one).map((cell) => h("td", {}, cell)))))))];
  }
}

function card({ id, last, seen, picked }) {
  if (!last) return h("p", { class: "note" }, "There is no picture or caption of it any more.");
  return h("div", { class: "card sample" }, h("div", { class: "frame large" }, picture(last)), h("div", {},
    last.caption ? h("p", { class: "finding" }, foreign(last.caption)) : null,
    facts([
      id && ["Id", foreign(id)],
      last.tag && ["Tag", foreign(last.tag)],
      ["Last fate", `${FATES[last.fate] ?? "–"}${last.order ? `, pick ${count(last.order)}` : ""}`],
      last.fate === "excluded" && ["Because", REASONS[last.reason] ?? "it cannot be used"],
      ["Score", nats(last.score, true)],
      ["Learner's loss", nats(last.learnerLoss)],
      ["Reference's loss", nats(last.referenceLoss)],
      seen > 0 && ["Seen", `${count(seen)} times, ${count(picked)} picked (${percent(picked / seen)})`],
      last.picture && last.missing && ["Missing", plain(last.missing)],
    ])));
}
