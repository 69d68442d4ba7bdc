"""The demo's page is one static HTML file with everything in it, and well-formed XML as well.

Whatever comes from data passes `escape`, for captions are other people's words.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from selector_tools.demo.results import Report
from selector_tools.inspector import snapshot

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f7f6f3; --paper: #ffffff; --text: #1d1c1a; --faint: #66635c; --line: #e2dfd8;
  --accent: #0b62c4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #141517; --paper: #1d1f22; --text: #e9e7e3; --faint: #a19e97; --line: #33363b;
    --accent: #6cb2ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 4rem 1.5rem 5rem; max-width: 68rem; background: var(--ground); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 {
  margin: 0 0 1.25rem; max-width: 24em; font-size: clamp(1.6rem, 4.4vw, 2.6rem); line-height: 1.18;
  font-weight: 650; letter-spacing: -0.02em; text-wrap: balance;
}
h2 { margin: 4rem 0 0.75rem; font-size: 1.3rem; line-height: 1.3; letter-spacing: -0.01em; }
p { margin: 0 0 1rem; max-width: 44rem; }
a { color: var(--accent); }
.kicker { margin: 0 0 0.75rem; color: var(--accent); font-weight: 600; }
.lede { font-size: 1.1rem; color: var(--faint); }
.note { margin: 0.6rem 0 1rem; color: var(--faint); font-size: 0.9rem; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
.scroll { overflow-x: auto; margin-top: 2.5rem; padding: 0.5rem 1.25rem; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.55rem 0 0.55rem 1.5rem; text-align: right; border-top: 1px solid var(--line); }
th:first-child { padding-left: 0; text-align: left; font-weight: 400; color: var(--faint); }
td { white-space: nowrap; }
thead th, thead th:first-child { border-top: 0; color: var(--text); font-weight: 650; }
.plot { margin: 1.5rem 0 0; padding: 1rem; }
.plot img { display: block; width: 100%; height: auto; }
.sheets {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 3rem;
}
iframe { display: block; width: 100%; height: 52rem; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0.3rem 1.5rem; margin: 0; font-size: 0.9rem; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
li { margin-bottom: 0.5rem; max-width: 44rem; }
ul { padding-left: 1.2rem; }
footer { margin-top: 4rem; color: var(--faint); font-size: 0.9rem; }
@media (max-width: 36rem) {
  body { padding: 2rem 1rem 3rem; }
  .scroll { padding: 0.25rem 0.8rem; font-size: 0.86rem; }
  th, td { padding-left: 0.8rem; white-space: normal; }
  th:first-child { min-width: 7.5rem; }
  .plot { padding: 0.5rem; }
}
"""


class Plots(NamedTuple):
    """The plot as SVG, for wide and narrow windows and for both colour schemes."""

    light: bytes
    dark: bytes
    narrow_light: bytes
    narrow_dark: bytes


def render(report: Report, headline: str, rows: Sequence[tuple[str, Sequence[str]]], note: str, plots: Plots) -> str:
    """Returns the page. `rows` of the table are names with a cell per arm each; the first one has the arms' names.
    The note stands below the table."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<title>Selector demo</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="kicker">Selector demo</p>
<h1>{_text(headline)}</h1>
<p class="lede">{_setting(report)}</p>
</header>
<main>
{_table(rows, note)}
{_definitions("What the arms train on", {arm.name: arm.about for arm in report.arms})}
<h2>Quality against steps</h2>
{_plot(plots)}
{_inspected(report)}
<div class="sheets">
{_definitions("Settings", report.settings)}
{_definitions("Versions", report.versions)}
</div>
<h2>How to read this</h2>
<ul>
{_lines(f"<li>{line}</li>" for line in _advice(report))}
</ul>
</main>
<footer>The same figures as data: <a href="results.json">results.json</a>. The plot:
<a href="accuracy.png">accuracy.png</a>.</footer>
</body>
</html>
"""


def percent(share: float, decimals: int = 0) -> str:
    """Shows a share of 0.29 as "29 %"."""
    return f"{100 * share:.{decimals}f} %"


def _text(words: str) -> str:
    """Escapes the words, and keeps a number on the same line as what it counts."""
    return re.sub(r"(?<=\d) ", "\u00a0", escape(words))


def _setting(report: Report) -> str:
    wrong = report.pool_mislabelled
    return (
        f"Each arm trains the same small SigLIP on icons and their names. {escape(report.stream)} "
        + (f"{percent(wrong)} of the captions belong to another picture. " if wrong else "")
        + "Uniform arms draw at random; for the others a sidecar process chooses what to train on."
    )


def _table(rows: Sequence[tuple[str, Sequence[str]]], note: str) -> str:
    (corner, names), *measures = rows
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = _lines(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in cells)}</tr>'
        for name, cells in measures
    )
    return f"""<div class="card scroll"><table>
<thead><tr><th scope="col">{escape(corner)}</th>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
<p class="note">{_text(note)}</p>"""


def _plot(plots: Plots) -> str:
    def source(svg: bytes) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()

    narrow, dark = "(max-width: 36rem)", "(prefers-color-scheme: dark)"
    return f"""<figure class="card plot"><picture>
<source media="{narrow} and {dark}" srcset="{source(plots.narrow_dark)}" />
<source media="{narrow}" srcset="{source(plots.narrow_light)}" />
<source media="{dark}" srcset="{source(plots.dark)}" />
<img src="{source(plots.light)}" alt="Zero-shot accuracy of every arm against training steps, with
the reference as a dashed line and uniform's final accuracy as a thin one; their ends are in the table." />
</picture></figure>"""


def _inspected(report: Report) -> str:
    """The inspector's page within this one. As its own document of its own origin, it cannot touch this one."""
    if report.inspected is None:
        return ""
    inspector = base64.b64encode(snapshot.page_of(report.inspected.answers).encode()).decode()
    return f"""<h2>What was picked, and what was not</h2>
<p>The inspector as it was at the end of the arm {escape(report.inspected.arm)}; while the demo runs, it is live at the
address that is printed. Only what is picked is trained on.</p>
<iframe class="card" title="The inspector" sandbox="allow-scripts"
src="data:text/html;charset=utf-8;base64,{inspector}#pictures"></iframe>"""


def _advice(report: Report) -> list[str]:
    """Says what the figures mean and what they do not."""
    scored = "; ".join(f"{escape(arm.name)}: {arm.scored / arm.trained:.1f}" for arm in report.arms)
    seconds = "; ".join(f"{escape(arm.name)}: {arm.train_seconds:.1f} s" for arm in report.arms)
    runs = len(report.arms[0].finals)
    single = "Each arm is a single run: a difference of a point or so may be chance."
    several = f"Figures are means of {runs} runs by different seeds, ± their standard deviation."
    advice = [
        "Shuffle your data first if you can: uniform, shuffled shows what that alone is worth. Joint selection is for "
        "data that comes as it was stored: it keeps pairs that are alike out of one batch.",
        "The reference learned from clean, curated pairs, and its knowledge is what tells good candidates from bad. "
        "Its own training is in none of the figures.",
        "Examples trained and scored are counted apart on purpose, as scoring is not free. Scored for each one "
        f"trained on: {scored}.",
        "Fewer steps are not as many times less compute or time: at each of its steps an arm that selects runs learner "
        f"and reference on the whole super-batch, unless it asks the reference only. Training took, on the clock: "
        f"{seconds}.",
        f"Steps to uniform's final accuracy are interpolated between evaluations. {several if runs > 1 else single}",
    ]
    if report.pool_mislabelled:
        advice.append(
            "Mislabelled means that the caption was shuffled on purpose; the sidecar is not told where. Poor names "
            "that came with the icons do not count."
        )
    return advice


def _definitions(title: str, entries: dict[str, str]) -> str:
    if not entries:
        return ""
    pairs = _lines(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries.items())
    return f"<section>\n<h2>{title}</h2>\n<dl>\n{pairs}\n</dl>\n</section>"


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(parts)
