// The view from which super-batches are taken along.

import { download } from "./api.js";
import { h, heading } from "./dom.js";
import { plain } from "./text.js";

export class KeepView {
  static label = "Keep";
  title = "Keep";

  constructor(app) {
    this.app = app;
    const last = h("input", { id: "last", type: "number", min: 1, max: 100000, value: 64, required: true });
    const told = h("p", { role: "status", class: "note" });
    const button = h("button", { class: "primary" }, "Download Parquet");
    const form = h("form", { class: "card find", onsubmit: async (event) => {
      event.preventDefault();
      button.disabled = true;
      told.textContent = "Writing the file …";
      try {
        save(await download("DownloadSuperBatches", { last: Number(last.value) }), "super-batches.parquet");
        told.textContent = "Downloaded.";
      } catch (error) {
        told.textContent = plain(error.message);
      }
      button.disabled = false;
    } }, h("label", { for: "last" }, "Last super-batches"), last, button);
    this.kept = h("p", {});
    this.element = h("section", { class: "view prose" }, heading("Take it along"), this.kept, form, told,
      h("h2", {}, "In a notebook"), h("pre", {}, h("code", {}, "import pandas\n\nframe = pandas.read_parquet(\"super-batches.parquet\")\nframe.groupby(\"fate\")[\"score\"].describe()")),
      h("h2", {}, "From the first step to the last"),
      h("p", {}, "A server started with ", h("code", {}, "--record FOLDER"), " writes every super-batch to files of the same form, up to a size that you set. Later, ", h("code", {}, "selector inspect FOLDER"), " opens them in this page, without a server."));
  }

  update() {
    this.kept.textContent = this.app.state.overview.content
      ? "One row for each candidate: losses, score, fate and reason, with its id, caption and tag."
      : "One row for each candidate: losses, score, fate and reason. The server keeps no content, so that ids, captions and tags are left out.";
  }
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
