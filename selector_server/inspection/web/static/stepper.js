// Chooses the super-batch that is looked at: an older one, a newer one, or always the last.

import { h, replace } from "./dom.js";
import { age, count } from "./text.js";

export class Stepper {
  constructor(app) {
    this.app = app;
    const step = (by) => () => { app.state.step(by); app.changed(); };
    this.older = h("button", { onclick: step(-1), "aria-label": "Older super-batch" }, "‹ older");
    this.newer = h("button", { onclick: step(1), "aria-label": "Newer super-batch" }, "newer ›");
    this.live = h("button", { onclick: () => { app.state.chosen = app.state.chosen ? 0 : app.state.after; app.changed(); } }, "Live");
    this.told = h("p", { class: "told" });
    this.element = h("div", { class: "stepper", role: "group", "aria-label": "Super-batch" }, this.older, this.newer, this.live, this.told);
  }

  /** Shows which one the point is of; `held` says that newer ones wait. */
  show(point, held = false) {
    const { state } = this.app;
    this.live.setAttribute("aria-pressed", String(!state.chosen));
    this.newer.disabled = !state.chosen;
    this.older.disabled = state.points[0] === state.point;
    const step = point?.trainerStep === undefined ? "" : `, step ${count(point.trainerStep)}`;
    replace(this.told, point ? [h("strong", {}, `Super-batch ${count(point.superBatch)}`), step,
      `, ${age(Math.max(0, state.overview.at - point.at))}: ${count(point.picks)} of ${count(point.candidates)} picked`,
      held ? " · waits while you look" : ""] : "No super-batch yet.");
  }
}
