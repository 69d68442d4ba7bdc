// What the page knows of the server: its last overview, the points of the last super-batches, and which one is looked at.

const MOST_POINTS = 1024;

export class State {
  overview = undefined;
  points = [];
  /** Number of the super-batch that is looked at; 0: always the last one. */
  chosen = 0;

  get newest() { return this.points.at(-1); }

  get after() { return this.newest?.superBatch ?? 0; }

  /** Takes an overview in; returns whether there is a new super-batch. */
  take(overview) {
    const restarted = this.overview && overview.totals.selections < this.overview.totals.selections;
    if (restarted) {
      this.points = [];
      this.chosen = 0;
    }
    this.overview = overview;
    this.points = this.points.concat(overview.points).slice(-MOST_POINTS);
    return restarted || overview.points.length > 0;
  }

  /** The point of the super-batch that is looked at. */
  get point() { return this.chosen ? this.points.find((one) => one.superBatch === this.chosen) : this.newest; }

  /** Chooses the super-batch that is `by` further, and the last one if there is none. */
  step(by) {
    const at = this.points.indexOf(this.point) + by;
    this.chosen = at >= this.points.length - 1 ? 0 : this.points[Math.max(0, at)].superBatch;
  }
}
