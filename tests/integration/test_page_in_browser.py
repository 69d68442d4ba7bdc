"""The page in a real headless Chromium: what somebody sees and does, and what other people's words cannot do."""

import json
import re

import pytest
from google.protobuf import json_format
from selector_proto.v1 import inspection_pb2 as pb
from support.chromium import chromium, needs_chromium
from support.made_up_source import MadeUpSource
from support.processes import eventually

from selector_server.errors import PermissionDenied, Unauthenticated
from selector_server.inspection.web.server import PageServer

VIEWS = ("overview", "scores", "pictures", "sample/5/100", "slices", "keep")
TOKEN = "a" * 40


@pytest.fixture(scope="module")
def browser():
    needs_chromium()
    with chromium() as one:
        yield one


@pytest.fixture
def serve():
    """serve(source, …) is the address of a page that ends with the test."""
    servers = []

    def start(source, authorise=lambda header: None) -> str:
        servers.append(PageServer(source, "127.0.0.1:0", authorise))
        return servers[-1].url

    yield start
    for one in servers:
        one.close()


@pytest.fixture
def visit(browser, serve):
    """visit(source, fragment, …) is a tab with its page; at the end of the test, its console must have been silent and
    nothing may have been asked of anybody else."""
    tabs = []

    def open_tab(source, fragment="", authorise=lambda header: None, **options):
        url = serve(source, authorise)
        tab = browser.page(f"{url}{fragment}", **options)
        tab.home = url
        tabs.append(tab)
        return tab

    yield open_tab
    for tab in tabs:
        assert tab.errors == []
        assert [one for one in tab.requests if not one.startswith((tab.home, "blob:"))] == []
        assert tab.js("window.hacked") is None
        tab.close()


def admins_only(header) -> None:
    if header == "Bearer trainer":
        raise PermissionDenied("authorization", "a token for data calls", "admin calls need one of their own")
    if header != f"Bearer {TOKEN}":
        raise Unauthenticated("authorization", "missing", "send a token")


def go(tab, view) -> None:
    tab.js(f"location.hash = {json.dumps(view)}")
    tab.until(f"document.querySelector('nav a[aria-current]')?.hash === '#{view.partition('/')[0]}'")


def test_it_answers_at_once_whether_selection_is_sane(visit):
    tab = visit(MadeUpSource(super_batches=40))
    tab.until_text("The newest weights have been refused since step 400")
    first, second = tab.js("[...document.querySelectorAll('.verdict')].map(e => e.innerText)")
    assert "Bad" in first
    assert "Look at the trainer's loss" in first
    assert "Look" in second
    assert "near-duplicate" in second
    for words in ("clip-b16-laion · step 400", "version 40", "10 steps behind", "Fallbacks", "joint", "+1.2", "live"):
        assert words in tab.text
    assert tab.js("document.querySelector('.verdict').getBoundingClientRect().bottom < innerHeight / 2")
    go(tab, "scores")
    tab.until("document.getElementById('worst')?.innerText.includes('refused since step 400')")


def test_it_says_so_when_nothing_is_wrong_or_nothing_came_yet(visit):
    source = MadeUpSource(super_batches=0)
    source.verdicts = []
    tab = visit(source)
    tab.until_text("No super-batch was selected yet")
    tab.until_text("waiting for a trainer")
    for view in VIEWS[1:]:
        go(tab, view)
        tab.until("document.querySelector('main h1')")
    tab.errors.clear()  # The browser itself says that an answer was a 409.
    go(tab, "overview")
    source.verdicts = [pb.Verdict(level=pb.VERDICT_LEVEL_GOOD, finding="Picks have more to learn than the pool.")]
    source.advance()
    tab.until_text("Picks have more to learn than the pool.")
    assert tab.js("document.querySelector('.verdict.good .badge').innerText.includes('Good')")


@pytest.mark.parametrize("view", ["overview", "scores", "pictures"])
def test_a_new_super_batch_appears_by_itself(visit, view):
    source = MadeUpSource(super_batches=3)
    tab = visit(source, f"#{view}")
    tab.until_text("3" if view == "overview" else "Super-batch 3")
    source.advance()
    tab.until_text("step 40" if view == "overview" else "Super-batch 4")


def test_a_server_that_began_anew_is_followed(visit):
    source = MadeUpSource(super_batches=20)
    tab = visit(source, "#scores")
    tab.until_text("Super-batch 20")
    del source._points[2:]
    tab.until_text("Super-batch 2,")


def test_a_hidden_tab_asks_nothing(visit):
    source = MadeUpSource(super_batches=3)
    tab = visit(source, "#pictures")
    tab.until_text("Super-batch 3")
    tab.hide()
    tab.js("new Promise(done => setTimeout(done, 300))")  # What was under way ends.
    asked = len(source.asked)
    source.advance()
    tab.js("new Promise(done => setTimeout(done, 2500))")
    assert len(source.asked) == asked
    tab.hide(False)
    tab.until_text("Super-batch 4")


def test_an_open_page_asks_for_little(visit):
    source = MadeUpSource(super_batches=3)
    tab = visit(source, "#pictures")
    tab.until_text("Super-batch 3")
    source.asked.clear()
    tab.js("new Promise(done => setTimeout(done, 4500))")
    assert source.asked.count("overview") <= 5
    assert source.asked.count("pictures") <= 2


def test_a_server_that_goes_away_is_told_and_found_again(visit):
    source = MadeUpSource(super_batches=3)
    tab = visit(source)
    tab.until_text("live")
    source.broken = True
    tab.until_text("no answer, last")
    assert "version 3" in tab.text
    source.broken = False
    tab.until("document.getElementById('link').innerText.includes('live')")
    assert any("500" in one for one in tab.errors)
    tab.errors.clear()  # The browser itself says that an answer was a 500.


def test_a_super_batch_is_chosen_and_left_again(visit):
    source = MadeUpSource(super_batches=6)
    tab = visit(source, "#scores")
    tab.until_text("Super-batch 6")
    tab.click("[aria-label='Older super-batch']")
    tab.until_text("Super-batch 5")
    source.advance()
    tab.until("document.querySelector('.run').innerText.includes('step 70')")
    assert "Super-batch 5" in tab.text
    go(tab, "pictures")
    tab.until_text("Super-batch 5")
    tab.js("[...document.querySelectorAll('.stepper button')].find(b => b.innerText === 'Live').click()")
    tab.until_text("Super-batch 7")


def test_pictures_are_the_pixels_that_the_learner_saw(visit):
    source = MadeUpSource(super_batches=5, hostile=False)
    tab = visit(source, "#pictures")
    tab.until("document.querySelectorAll('.tile canvas').length >= 30")
    shown = source.list_pictures(pb.ListPicturesRequest()).galleries[0].candidates[0]
    drawn = tab.js(
        "(() => { const c = document.querySelector('.tile canvas');"
        "return [c.width, c.height, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data] })()"
    )
    width, height, *pixels = drawn
    assert (width, height) == (shown.picture.width, shown.picture.height)
    raw, channels = shown.picture.pixels, shown.picture.channels
    expected = [raw[channels * i + min(c, channels - 1)] for i in range(width * height) for c in range(3)]
    assert [one for i, one in enumerate(pixels) if i % 4 != 3] == expected
    for words in ("Picked, highest scores", "Kept apart", "the picture cannot be decoded", "only its embeddings came"):
        assert words in tab.text


def test_pictures_of_any_size_do_no_harm(visit):
    source = MadeUpSource(super_batches=5, hostile=False)
    sizes = [(4000, 3000, 3), (0, 0, 3), (1, 1, 1), (5, 5, 2), (2**31, 2**31, 3)]

    def candidate(number, index, pixels):
        height, width, channels = sizes[index % len(sizes)]
        data = b"\x7f" * min(height * width * channels, 36_000_000)
        picture = pb.Picture(height=height, width=width, channels=channels, pixels=data)
        return pb.Candidate(index=index, fate=pb.FATE_PICKED, picture=picture, caption=str(sizes[index % len(sizes)]))

    source._candidate = candidate
    tab = visit(source, "#sample/5/0")
    for index in range(len(sizes)):
        go(tab, f"sample/5/{index}")
        tab.until_text(str(sizes[index]))
        drawn = tab.js(
            "(() => { const c = document.querySelector('.frame canvas'); return c && [c.width, c.height] })()"
        )
        assert drawn is None or max(drawn) <= 256


def test_a_pick_is_opened_from_the_scatter_and_from_the_list(visit):
    tab = visit(MadeUpSource(super_batches=5, hostile=False), "#scores")
    tab.until("document.querySelectorAll('.scroll tbody tr').length === 40")
    first = tab.js("document.querySelector('.scroll tbody a').innerText")
    tab.click(".scroll tbody a")
    tab.until_text("Its losses each time it was seen")
    assert tab.js("location.hash") == f"#sample/5/{first.split()[1]}"
    go(tab, "scores")
    tab.until(
        "document.querySelectorAll('.scroll tbody tr').length === 40"
        " && document.querySelectorAll('.u-over').length === 3"
    )
    tab.js("document.querySelectorAll('.u-over')[2].scrollIntoView({block: 'center'})")
    # The dots are looked for as somebody would: by pressing where the colour of picks is.
    spot = tab.js(
        "(() => { const c = document.querySelectorAll('.uplot canvas')[2], r = c.getBoundingClientRect();"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "for (let y = 20; y < c.height - 60; y++) for (let x = 70; x < c.width - 20; x++) {"
        "const i = 4 * (y * c.width + x); if (d[i] < 40 && d[i + 2] > 180 && d[i + 3] > 250)"
        "return [r.x + x * r.width / c.width, r.y + y * r.height / c.height] } })()"
    )
    tab.click_at(*spot)
    tab.until("location.hash.startsWith('#sample/5/')")


def test_a_sample_is_found_by_its_id_which_stays_out_of_the_address(visit):
    source = MadeUpSource(super_batches=5, hostile=False)
    tab = visit(source, "#sample")
    tab.until("document.getElementById('sample-id')")
    tab.js("document.getElementById('sample-id').focus()")
    tab.type("7100")
    tab.press("Enter")
    tab.until_text("12 times, 4 picked")
    assert tab.js("document.querySelectorAll('.scroll tbody tr').length") == 12
    assert "7100" not in tab.js("location.href")
    tab.js("document.getElementById('sample-id').value = 'nobody'; document.querySelector('main form').requestSubmit()")
    tab.until_text("was not seen, or not kept")
    tab.errors.clear()  # The browser itself says that an answer was a 409.


def test_slices_show_who_is_picked_more_often(visit):
    tab = visit(MadeUpSource(super_batches=5, hostile=False), "#slices")
    tab.until("document.querySelectorAll('.scroll tbody tr').length > 20")
    for words in ("Tags", "Words of captions", "screenshots", "all other tags", "≈ pool"):
        assert words in tab.text
    tab.js(
        "(() => { const s = document.getElementById('order'); s.value = 'over';"
        "s.dispatchEvent(new Event('change')) })()"
    )
    lifts = tab.js("[...document.querySelectorAll('section section')].pop().querySelectorAll('td.lift').length")
    shown = tab.js(
        "[...document.querySelectorAll('section section:last-of-type td.lift')].map(e => parseFloat(e.innerText))"
    )
    sure = [one for one in shown[:lifts] if one is not None]
    assert sure == sorted(sure, reverse=True)


def test_a_file_is_kept(visit, tmp_path, browser):
    source = MadeUpSource(super_batches=5)
    tab = visit(source, "#keep")
    tab.until("document.querySelector('main button')")
    tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), browserContextId=tab._context)
    tab.js("document.getElementById('last').value = 3")
    tab.click("main form button")
    tab.until_text("Downloaded.")
    eventually(lambda: (tmp_path / "super-batches.parquet").exists())
    data = (tmp_path / "super-batches.parquet").read_bytes()
    assert (data[:4], data[-4:], len(data)) == (b"PAR1", b"PAR1", 300_008)


def test_a_server_that_keeps_no_content_says_what_is_missing(visit):
    tab = visit(MadeUpSource(super_batches=5, content=False), "#pictures")
    tab.until_text("The server keeps numbers only")
    go(tab, "slices")
    tab.until_text("Tags and words are content")
    go(tab, "keep")
    tab.until_text("The server keeps no content")


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
