// The view of pictures: some candidates of one super-batch that are worth a look.

import { h, heading, replace } from "./dom.js";
import { tile } from "./pictures.js";
import { Stepper } from "./stepper.js";

const GALLERIES = {
  highest_picked: ["Picked, highest scores", "What selection likes most; the number below is the score. Wrong captions here mean that the reference does not know better."],
  lowest_picked: ["Picked, lowest scores", "The last ones in. They should still look worth a step."],
  highest_dropped: ["Dropped, highest scores", "High on their own, and others were drawn: chance, or too easy beside the picks."],
  random_dropped: ["Dropped, at random", "What training does without."],
  kept_apart: ["Kept apart", "Near-duplicates of a pick."],
  excluded: ["Excluded", "What cannot be used, and why."],
  prefiltered: ["Prefiltered", "What the reference alone left out."],
};

export class PicturesView {
  static label = "Pictures";
  title = "Pictures";
  seconds = 4;

  constructor(app) {
    this.app = app;
    this.stepper = new Stepper(app);
    this.content = h("div", { class: "galleries" });
    this.element = h("section", { class: "view" }, heading("What is picked, and what is not"), this.stepper.element, this.content);
  }

  async update(now) {
    const { state } = this.app;
    if (!state.newest) return this.fail("No super-batch yet. They appear here by themselves as soon as a trainer asks.");
    // Nothing moves away under a finger or the keyboard's focus.
    const held = !now && (this.content.matches(":hover") || this.content.contains(document.activeElement));
    if (held || (this.shown && !now && state.chosen)) return this.stepper.show(this.shown, held && !state.chosen);
    const { point, galleries, content } = await this.app.ask("ListPictures", { superBatch: state.chosen });
    this.shown = point;
    this.stepper.show(point);
    const filled = galleries.filter((one) => one.candidates.length);
    replace(this.content, content ? null : h("p", { class: "card note" },
      "The server keeps numbers only. Started with ", h("code", {}, "--inspect-content true"), ", it also keeps pictures and captions for this page."),
    filled.length ? filled.map((one) => section(one, point.superBatch)) : h("p", { class: "note" }, "Nothing of this super-batch is kept."));
  }

  fail(words) { replace(this.content, h("p", { class: "card note" }, words)); this.stepper.show(undefined); this.shown = undefined; }
}

function section({ gallery, candidates }, superBatch) {
  const [title, about] = GALLERIES[gallery] ?? [gallery, ""];
  return h("section", { "aria-label": title }, h("h2", {}, title), h("p", { class: "note" }, about),
    h("ul", { class: "tiles" }, candidates.map((one) => tile(one, superBatch))));
}
