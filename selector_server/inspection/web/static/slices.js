// The view of slices: which tags and words are picked more or less often than the pool.

import { h, heading, replace } from "./dom.js";
import { count, foreign, percent } from "./text.js";

const ROWS = 30, SURE = 2;
const ORDERS = {
  frequent: ["most frequent", (one) => one.candidates],
  over: ["picked most above the pool", (one) => (one.sure ? one.lift : -1)],
  under: ["picked most below the pool", (one) => (one.sure ? -one.lift : -1e9)],
};

export class SlicesView {
  static label = "Slices";
  title = "Slices";
  seconds = 5;

  constructor(app) {
    this.app = app;
    this.order = "frequent";
    const choose = h("select", { id: "order", onchange: () => { this.order = choose.value; this.#show(); } },
      Object.entries(ORDERS).map(([name, [words]]) => h("option", { value: name }, words)));
    this.content = h("div");
    this.note = h("p", { class: "note" });
    this.element = h("section", { class: "view" }, heading("Who is picked more often than others"), this.note,
      h("p", { class: "find" }, h("label", { for: "order" }, "Order"), choose), this.content);
  }

  async update() {
    this.answer = await this.app.ask("ListSlices");
    this.#show();
  }

  #show() {
    if (!this.answer) return;
    const { tags, words, otherTags, pickRate, content } = this.answer;
    this.note.textContent = content ? `Of all candidates, ${percent(pickRate)} are picked. A rate far from that is a bias of selection: wanted, or not.` : "";
    if (!content) return this.fail("Tags and words are content. Started with --inspect-content true, the server counts them.");
    replace(this.content, h("div", { class: "columns" },
      this.#table("Tags", tags, pickRate, otherTags, "No candidate had a tag; a loader's column `tags` sends them."),
      this.#table("Words of captions", words, pickRate, undefined, "No caption was seen yet.")));
  }

  fail(words) { replace(this.content, h("p", { class: "card note" }, words)); }

  #table(title, slices, rate, other, none) {
    const known = slices.map((one) => compared(one, rate)).sort((a, b) => ORDERS[this.order][1](b) - ORDERS[this.order][1](a)).slice(0, ROWS);
    if (other?.candidates) known.push(compared({ ...other, name: "all other tags" }, rate));
    return h("section", { "aria-label": title }, h("h2", {}, title), known.length
      ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, h("table", {}, h("thead", {}, h("tr", {}, ["", "Seen", "Picked", "Against pool"].map((one) => h("th", { scope: "col" }, one || h("span", { class: "hidden" }, "Name"))))),
        h("tbody", {}, known.map(row)))) : h("p", { class: "note" }, none));
  }
}

/** Adds the pick rate, its ratio to the pool's, and whether the two differ by more than twice what chance does. */
function compared(slice, pool) {
  const rate = slice.candidates ? slice.picked / slice.candidates : 0;
  const chance = Math.sqrt((pool * (1 - pool)) / Math.max(1, slice.candidates));
  return { ...slice, rate, lift: pool ? rate / pool : 1, sure: Math.abs(rate - pool) > SURE * chance };
}

function row({ name, candidates, rate, lift, sure }) {
  const bar = h("span", { class: `fill ${lift > 1 ? "over" : "under"}`, "aria-hidden": "true" });
  // Half of the width stands for the pool's rate, all of it for twice that or more.
  const share = Math.min(2, lift) / 2;
  bar.style.left = `${100 * Math.min(share, 0.5)}%`;
  bar.style.width = `${100 * Math.abs(share - 0.5)}%`;
  return h("tr", { class: sure ? "" : "unsure" }, h("th", { scope: "row" }, foreign(name, 80)), h("td", {}, count(candidates)), h("td", {}, percent(rate)),
    h("td", { class: "lift" }, h("span", { class: "track" }, bar), sure ? `${lift.toFixed(2)}×` : "≈ pool"));
}
