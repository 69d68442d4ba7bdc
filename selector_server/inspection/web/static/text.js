// Shows other people's words and numbers as they are, and harmlessly.

import { h } from "./dom.js";

const LONGEST = 512;
// Controls, and formats that change how the text around them is drawn; joiners stay, for scripts and emoji need them.
const HIDDEN = /(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\u2028\u2029]/gu;
// More marks on one letter than any script needs draw over their neighbours.
const STACKED = /(\p{M}{4})\p{M}+/gu;

/** Words as one line of at most `longest` characters, with controls as escapes such as \u{202e}. */
export function plain(words, longest = LONGEST) {
  const clipped = Array.from(words.slice(0, 2 * longest));
  const cut = clipped.length > longest || words.length > 2 * longest;
  return escaped(clipped.slice(0, longest).join("")) + (cut ? "…" : "");
}

function escaped(words) {
  return words.replace(STACKED, "$1").replace(HIDDEN, (one) => `\\u{${one.codePointAt(0).toString(16)}}`);
}

/** The same as an element whose direction is its own. */
export function foreign(words, longest = LONGEST) { return h("bdi", { dir: "auto" }, plain(words, longest)); }

const whole = new Intl.NumberFormat("en");
const share = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });

export function count(value) { return whole.format(value); }

export function percent(value) { return Number.isFinite(value) ? share.format(value) : "–"; }

/** A loss or score in nats. */
export function nats(value, signed = false) {
  if (value === undefined || !Number.isFinite(value)) return "–";
  return `${signed && value >= 0 ? "+" : ""}${value.toFixed(2)}`.replace("-", "−");
}

export function age(seconds) {
  if (seconds < 1) return "just now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return seconds < 130000 ? `${Math.round(seconds / 3600)} h ago` : `${Math.round(seconds / 86400)} days ago`;
}

export const FATES = {
  picked: "picked", dropped: "dropped", prefiltered: "prefiltered", kept_apart: "kept apart", excluded: "excluded",
};

export const REASONS = {
  missing: "it has no picture or no text", unreadable: "the picture cannot be decoded",
  format: "its format is not served", too_large: "it is too large", text: "the text is not Unicode",
  value: "one of its values is not a number that a model takes", repeated: "the super-batch has it already",
};
