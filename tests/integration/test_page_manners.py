"""The page in a real headless Chromium: what other people's words cannot do, who may look, and for whom it is made."""

import json
import re

import pytest
from google.protobuf import json_format
from selector_proto.v1 import inspection_pb2 as pb
from support.made_up_source import MadeUpSource
from support.processes import eventually

from selector_server.errors import PermissionDenied, Unauthenticated

VIEWS = ("overview", "scores", "pictures", "sample/5/100", "slices", "keep")
TOKEN = "a" * 40


def admins_only(header) -> None:
    if header == "Bearer trainer":
        raise PermissionDenied("authorization", "a token for data calls", "admin calls need one of their own")
    if header != f"Bearer {TOKEN}":
        raise Unauthenticated("authorization", "missing", "send a token")


def go(tab, view) -> None:
    tab.js(f"location.hash = {json.dumps(view)}")
    tab.until(f"document.querySelector('nav a[aria-current]')?.hash === '#{view.partition('/')[0]}'")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_other_peoples_words_are_words(visit, view, dark):
    source = MadeUpSource(super_batches=5)
    source.run = "<img src=x onerror=window.hacked=1>\u202e"
    source.verdicts = [pb.Verdict(level=pb.VERDICT_LEVEL_BAD, finding="<script>window.hacked=1</script>" * 100)]
    tab = visit(source, f"#{view}", dark=dark, width=360 if dark else 1280)
    tab.until("document.querySelector('main h1') && document.querySelector('.run').innerText")
    tab.js("new Promise(done => setTimeout(done, 600))")
    assert tab.js("document.querySelectorAll('main script, main img, main svg, main iframe, [onerror]').length") == 0
    text = tab.js("document.body.textContent")
    assert re.search("[\u0000-\u0008\u202a-\u202e\u2066-\u2069\u001b]", text) is None
    assert "x" * 600 not in text
    assert tab.js("document.documentElement.scrollWidth <= innerWidth")
    if view == "pictures":
        assert "\\u{202e}" in text
        assert "<script>window.hacked = 1</script>" in text
        assert "مرحبا بالعالم" in text


def test_the_policy_runs_no_code_that_slipped_in(visit):
    tab = visit(MadeUpSource(super_batches=1))
    tab.until_text("live")
    tab.js(
        "(() => { const s = document.createElement('img'); s.src = 'https://evil.example/x.png';"
        "document.body.append(s) })()"
    )
    caught = tab.js(
        "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'set' } catch (e) { return e.name } })()"
    )
    assert caught == "TypeError"
    eventually(lambda: any("Content Security Policy" in one for one in tab.errors))
    tab.errors.clear()
    tab.requests[:] = [one for one in tab.requests if "evil.example" not in one]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_narrow_screen_shows_all_and_scrolls_in_one_direction(visit, view, dark):
    tab = visit(MadeUpSource(super_batches=5), f"#{view}", width=360, height=740, dark=dark)
    tab.until("document.querySelector('main h1')")
    tab.js("new Promise(done => setTimeout(done, 600))")
    assert tab.js("document.documentElement.scrollWidth <= innerWidth")
    assert tab.js("[...document.querySelectorAll('nav a')].every(a => a.getBoundingClientRect().right <= innerWidth)")


CONTRAST = """
(() => {
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const ground = (e) => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] === 1) return c; }
    return [255, 255, 255]; };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
    if (e.disabled) continue;
    const a = light(parse(getComputedStyle(e).color)), b = light(ground(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${e.tagName} ${e.className} ${e.innerText.slice(0, 30)}`);
  }
  return poor;
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(visit, dark):
    tab = visit(MadeUpSource(super_batches=5, hostile=False), dark=dark)
    ground = tab.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) is dark
    for view in VIEWS:
        go(tab, view)
        tab.until("document.querySelector('main h1')")
        tab.js("new Promise(done => setTimeout(done, 700))")
        assert tab.js(CONTRAST) == []


def test_charts_follow_the_colour_scheme(visit):
    tab = visit(MadeUpSource(super_batches=5))
    tab.until("document.querySelector('.uplot canvas')")
    picture = "document.querySelector('.uplot canvas').toDataURL()"
    before = tab.js(picture)
    tab.scheme(True)
    tab.until(f"{picture} !== {json.dumps(before)}")


def test_the_keyboard_alone_is_enough(visit):
    tab = visit(MadeUpSource(super_batches=5, hostile=False))
    tab.until_text("live")
    focus = "document.activeElement.innerText || document.activeElement.getAttribute('aria-label')"
    tab.press("Tab")
    assert tab.js(focus) == "Skip to the content"
    tab.press("Tab", 3)
    assert tab.js(focus) == "Pictures"
    assert tab.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.press("Enter")
    tab.until("document.querySelectorAll('.tile').length > 30")
    assert tab.js("document.activeElement.tagName") == "H1"
    tab.press("Tab")
    assert "older" in tab.js(focus)
    tab.press("Enter")
    tab.until_text("Super-batch 4")
    tab.until("!document.querySelector('[aria-label=\"Newer super-batch\"]').disabled")
    while not tab.js("document.activeElement.classList.contains('tile')"):
        tab.press("Tab")
    tab.press("Enter")
    tab.until_text("Its losses each time it was seen")
    assert tab.js("location.hash").startswith("#sample/4/")
    assert tab.js("document.activeElement.tagName") == "H1"
    tab.press("Tab", 1)
    tab.type("7100")
    tab.press("Enter")
    tab.until_text("12 times, 4 picked")


def test_what_has_the_focus_does_not_move_away(visit):
    source = MadeUpSource(super_batches=3)
    tab = visit(source, "#pictures")
    tab.until("document.querySelectorAll('.tile').length > 30")
    tab.js("document.querySelectorAll('.tile')[5].focus()")
    source.advance()
    tab.until_text("waits while you look")
    assert tab.js("document.activeElement === document.querySelectorAll('.tile')[5]")
    tab.js("document.activeElement.blur()")
    tab.until_text("Super-batch 4")


NAMES = """
[...document.querySelectorAll('a, button, input, select, canvas[role=img], [role=region], [role=group]')].filter((e) =>
  !(e.innerText || e.getAttribute('aria-label') || e.labels?.length || '').toString().trim() && !e.labels?.length)
  .map((e) => e.outerHTML.slice(0, 120))
"""


def test_all_that_is_used_has_a_name_and_a_place(visit):
    tab = visit(MadeUpSource(super_batches=5))
    for view in VIEWS:
        go(tab, view)
        tab.until("document.querySelector('main h1')")
        tab.js("new Promise(done => setTimeout(done, 500))")
        assert tab.js(NAMES) == []
        assert tab.js("document.querySelectorAll('h1').length") == 1
        assert tab.js("['header', 'nav', 'main'].every((one) => document.querySelectorAll(one).length === 1)")


def test_without_an_admins_token_nothing_is_shown(visit):
    source = MadeUpSource(super_batches=5)
    tab = visit(source, "", admins_only)
    tab.until("document.getElementById('token')")
    assert tab.js("document.activeElement.id") == "token"
    assert source.asked == []
    for token, words in (("nonsense", "does not open it"), ("trainer", "admin calls need one of their own")):
        tab.js("document.getElementById('token').value = ''")
        tab.js("document.getElementById('token').focus()")
        tab.type(token)
        tab.press("Enter")
        tab.until_text(words)
        assert source.asked == []
    tab.js("document.getElementById('token').focus()")
    tab.type(TOKEN)
    tab.press("Enter")
    tab.until_text("version 5")
    kept = "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href, history.state])"
    assert TOKEN not in tab.js(kept)
    tab.open(tab.home)
    tab.until("document.getElementById('token')")
    tab.errors.clear()  # The browser itself says that answers were 401 and 403.


def test_a_token_in_the_address_is_taken_out_of_it(visit):
    tab = visit(MadeUpSource(super_batches=5), f"#token={TOKEN}", admins_only)
    tab.until_text("version 5")
    assert "token" not in tab.js("location.href")
    assert not any(TOKEN in one for one in tab.requests)


def test_messages_arrive_as_they_were_sent(visit):
    source = MadeUpSource(super_batches=5)
    tab = visit(source)
    tab.until_text("live")
    overview = source.get_overview(pb.GetOverviewRequest())
    overview.points[0].lag_steps = -7
    overview.points[1].trainer_step = 2**52
    overview.unserved_weights.reason = "“why”"
    messages = (
        overview,
        source.get_super_batch(pb.GetSuperBatchRequest()),
        source.get_sample(pb.GetSampleRequest(id="7100")),
    )
    for message in messages:
        name, data = message.DESCRIPTOR.full_name, list(message.SerializeToString())
        got = tab.js(
            "Promise.all([import('/messages.js'), fetch('/schema.json').then(r => r.json())]).then(([m, s]) =>"
            f"JSON.stringify(m.decode(s, {json.dumps(name)}, new Uint8Array({data})), (_, v) => v instanceof Map ?"
            "Object.fromEntries(v) : v instanceof Float32Array ? [...v].map(String) : v))"
        )
        told = json.loads(got)
        expected = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
        compare(told, expected, message.DESCRIPTOR.name)


def compare(told, expected, where) -> None:
    """What JavaScript made of a message and what protobuf's own JSON is agree."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            compare(told[name], value, f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(told) == len(expected), where
        for one, other in zip(told, expected, strict=True):
            compare(one, other, where)
    elif isinstance(expected, str) and expected.isupper() and isinstance(told, str):
        assert expected.lower().endswith(told), where
    elif isinstance(expected, bool) or (isinstance(expected, str) and isinstance(told, str) and told != "NaN"):
        if told != expected:
            assert float(told) == pytest.approx(float(expected), rel=1e-6), where
    elif expected == "NaN":
        assert told == "NaN", where
    elif where.endswith("pixels"):
        pass
    else:
        assert float(told) == pytest.approx(float(expected), rel=1e-6), where
