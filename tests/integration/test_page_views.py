"""The page in a real headless Chromium: what somebody sees and does."""

import json

import pytest
from selector_proto.v1 import inspection_pb2 as pb
from support.made_up_source import MadeUpSource
from support.processes import eventually

VIEWS = ("overview", "scores", "pictures", "sample/5/100", "slices", "keep")


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
