// Runs the page: asks the server while somebody looks, and shows the view that the address names.

import { Refused, ask, useToken } from "./api.js";
import { h, heading, replace } from "./dom.js";
import { KeepView } from "./keep.js";
import { OverviewView, verdictLine } from "./overview.js";
import { PicturesView } from "./gallery.js";
import { SampleView } from "./sample.js";
import { ScoresView } from "./scores.js";
import { SlicesView } from "./slices.js";
import { State } from "./state.js";
import { age, plain } from "./text.js";

const VIEWS = {
  overview: OverviewView, scores: ScoresView, pictures: PicturesView, sample: SampleView, slices: SlicesView,
  keep: KeepView,
};
const SECONDS = 1, MOST_SECONDS = 30;
const main = document.getElementById("main");
const state = new State();
let view, timer, failures = 0, answered = 0, asking = false, refused = false, tried = false;

const app = { state, ask: (method, request) => ask(method, request), changed: () => show(true) };

function route() { return location.hash.slice(1).split("/"); }

/** Opens the view that the address names. */
function open(event) {
  const [name, ...place] = route();
  const found = Object.hasOwn(VIEWS, name) ? name : "overview";
  view?.close?.();
  view = new VIEWS[found](app, place);
  document.title = `${view.title} · Selector`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${found}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (refused) return;
  replace(main, found === "overview" ? null : h("p", { id: "worst" }), view.element);
  if (event) {
    scrollTo(0, 0);
    view.element.querySelector("h1")?.focus({ preventScroll: true });
  }
  show(true);
}

/** Brings the view up to date; a view that was told so a moment ago waits, unless it must be now. */
async function show(now) {
  const one = view;
  if (refused || !state.overview || (!now && performance.now() < (one.next ?? 0))) return;
  one.next = performance.now() + 1000 * (one.seconds ?? 0);
  const worst = document.getElementById("worst");
  if (worst) replace(worst, verdictLine(state.overview.verdicts));
  try {
    await one.update(now);
  } catch (error) {
    if (one === view) failed(error);
  }
}

function failed(error) {
  if (error instanceof Refused && [401, 403].includes(error.status)) return logIn(error);
  if (error instanceof Refused) return view.fail?.(plain(error.message));
  failures += 1;
  tell();
}

async function poll() {
  clearTimeout(timer);
  if (asking || refused || document.hidden) return;
  asking = true;
  try {
    const first = !state.overview;
    const news = state.take(await ask("GetOverview", { after: state.after }));
    failures = 0;
    answered = Date.now();
    document.getElementById("run").textContent = told(state.overview);
    // The last point of a server that began anew is not among those that were asked for.
    if (news && !state.points.length) state.take(await ask("GetOverview", {}));
    await show(first);
  } catch (error) {
    failures += 1;
    if (error instanceof Refused) failed(error);
    else if (!(error instanceof TypeError || error instanceof DOMException)) console.error(error);
  }
  asking = false;
  tell();
  timer = setTimeout(poll, 1000 * Math.min(MOST_SECONDS, SECONDS * 2 ** failures));
}

function told({ run, trainerStep }) {
  const step = trainerStep === undefined ? "" : ` · step ${trainerStep.toLocaleString("en")}`;
  return `${plain(run || "no run", 80)}${step}`;
}

/** Says whether what is shown is of now. */
function tell() {
  const link = document.getElementById("link");
  const [words, kind] = refused ? ["locked", "off"] : failures
    ? [answered ? `no answer, last ${age((Date.now() - answered) / 1000)}` : "no answer", "bad"]
    : state.newest ? ["live", "good"] : state.overview ? ["waiting for a trainer", "off"] : ["asking", "off"];
  if (link.textContent !== words) link.textContent = words;
  link.className = `link ${kind}`;
}

function logIn(error) {
  refused = true;
  const field = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const why = error.status === 403 ? plain(error.limit || error.message) : tried ? "That token does not open it." : "";
  replace(main, h("form", { class: "card login", onsubmit: (event) => {
    event.preventDefault();
    useToken(field.value);
    tried = true;
    refused = false;
    open();
    poll();
  } }, heading("An admin token opens this page"),
  h("p", {}, "It stays in this tab's memory: reloading the page forgets it. A trainer's token does not open it."),
  h("label", { for: "token" }, "Admin token"), field,
  h("button", { class: "primary" }, "Open"), h("p", { class: "error", role: "alert" }, why)));
  field.focus();
  tell();
}

replace(document.getElementById("views"), Object.entries(VIEWS).map(([name, { label }]) =>
  h("li", {}, h("a", { href: `#${name}` }, label))));
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  useToken(given);
  history.replaceState(null, "", location.pathname);
}
addEventListener("hashchange", open);
document.addEventListener("visibilitychange", poll);
// What is told as age grows old by itself.
setInterval(() => document.hidden || tell(), 1000);
open();
poll();
