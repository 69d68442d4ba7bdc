// Pictures of candidates, drawn from raw pixels, and galleries of them.

import { h } from "./dom.js";
import { FATES, REASONS, foreign, nats, plain } from "./text.js";

const LARGEST = 256;

/** A canvas, or words on what is missing. */
export function picture(candidate) {
  const { picture: raw, caption } = candidate;
  if (!raw) return h("span", { class: "nothing" }, candidate.missing ? plain(candidate.missing) : "no picture");
  const { height, width, channels, pixels } = raw;
  if (!height || !width || ![1, 3].includes(channels) || pixels.length !== height * width * channels)
    return h("span", { class: "nothing" }, "its pixels do not fit its size");
  const step = Math.max(1, Math.ceil(Math.max(height, width) / LARGEST));
  const canvas = h("canvas", { role: "img", "aria-label": caption ? plain(caption, 120) : "a picture without caption",
    width: Math.ceil(width / step), height: Math.ceil(height / step) });
  const image = new ImageData(canvas.width, canvas.height);
  const last = channels - 1;
  let to = 0;
  for (let y = 0; y < height; y += step)
    for (let x = 0; x < width; x += step, to += 4) {
      const from = (y * width + x) * channels;
      image.data[to] = pixels[from];
      image.data[to + 1] = pixels[from + (last && 1)];
      image.data[to + 2] = pixels[from + last];
      image.data[to + 3] = 255;
    }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** The address of the page of one candidate: its place, for an id is content, and a browser keeps addresses. */
export function place(superBatch, index) { return `#sample/${superBatch}/${index}`; }

/** A tile that opens the candidate's page. */
export function tile(candidate, superBatch) {
  const score = candidate.score === undefined ? "" : nats(candidate.score, true);
  const why = candidate.fate === "excluded" ? REASONS[candidate.reason] ?? "it cannot be used" : "";
  return h("li", {}, h("a", { class: `tile ${candidate.fate}`, href: place(superBatch, candidate.index) },
    h("span", { class: "frame" }, picture(candidate)),
    h("span", { class: "caption" }, candidate.caption ? foreign(candidate.caption, 160) : `candidate ${candidate.index}`),
    h("span", { class: "small" }, score || FATES[candidate.fate] || "", candidate.order ? ` · pick ${candidate.order}` : ""),
    why && h("span", { class: "small reason" }, why)));
}
