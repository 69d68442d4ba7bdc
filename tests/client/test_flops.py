"""FLOPs against the paper's own figures (Evans et al. 2024: section 3.3, figure 4, appendix A.4)."""

import pytest
from selector_client.flops import FlopMeter, Flops, Towers

PAPER = Towers(image=1.0, low_image=0.28, text=0.0)
PICKS = 32_768


def cost(ratio, *, cached=True, flexi=False, reuse=False, towers=PAPER) -> Flops:
    candidates = round(PICKS / (1 - ratio))
    meter = FlopMeter(towers, low_scoring=flexi, reuse=reuse)
    return meter.add(candidates, PICKS, low_picks=PICKS // 2 * flexi, uncached=0 if cached else candidates)


@pytest.mark.parametrize(
    ("ratio", "more", "percent"),
    [
        (0.8, {"reuse": True}, 233),  # JEST in tables 1 and 4
        (0.8, {"reuse": True, "cached": False}, 400),  # figure 4
        (0.8, {"flexi": True}, 110),  # Flexi-JEST in tables 1 and 4; to be exact 110.67
        (0.5, {"reuse": True}, 133),
        (0.9, {"reuse": True}, 400),
        (0.5, {"reuse": True, "cached": False}, 200),
        (0.5, {"flexi": True}, 83),
        (0.9, {"flexi": True}, 157),
        (0.8, {}, 267),  # a separate process cannot hand activations back
    ],
)
def test_a_step_costs_what_the_paper_says(ratio, more, percent):
    assert cost(ratio, **more).relative * 100 == pytest.approx(percent, abs=0.7)


def test_the_parts_are_those_of_figure_4():
    share = 100 / cost(0.8).baseline
    jest, flexi = cost(0.8, reuse=True, cached=False), cost(0.8, flexi=True)
    assert [round(part * share) for part in (jest.train, jest.learner, jest.reference)] == [100, 133, 167]
    assert [round(part * share) for part in (flexi.train, flexi.learner, flexi.reference)] == [64, 47, 0]


def test_scoring_at_low_resolution_saves_72_percent():
    assert 1 - cost(0.8, flexi=True).learner / cost(0.8).learner == pytest.approx(0.72, abs=1e-4)


def test_by_token_count_flexi_jest_costs_104_percent():
    assert cost(0.8, flexi=True, towers=Towers(1.0, 0.25, 0.0)).relative == pytest.approx(1.04, abs=5e-3)


def test_texts_count_in_full():
    meter = FlopMeter(Towers(image=8.0, low_image=2.0, text=1.0))
    step = meter.add(candidates=10, picks=4, low_picks=1, uncached=6)
    assert step == Flops(train=3 * (1 * 3.0 + 3 * 9.0), learner=10 * 3.0, reference=6 * 3.0, baseline=3 * 4 * 9.0)


def test_steps_add_up_and_a_uniform_one_costs_its_baseline():
    meter = FlopMeter(PAPER, low_scoring=False)
    uniform = meter.add(0, 100)
    assert (uniform.relative, uniform.spent) == (1.0, 300.0)
    selected = meter.add(500, 100)
    assert meter.total == uniform + selected
    assert meter.total.relative == pytest.approx((300 + 800) / 600)
    assert Flops().relative == 0.0


@pytest.mark.parametrize("more", [{"low_picks": 5}, {"uncached": 11}, {"low_picks": -1}, {"uncached": -1}])
def test_counts_that_do_not_fit_are_refused(more):
    with pytest.raises(ValueError, match="picks low"):
        FlopMeter(PAPER).add(10, 4, **more)


def test_settings_that_do_not_fit_are_refused():
    for sizes in ((1.0, 2.0, 0.0), (1.0, 0.0, 0.0), (1.0, 0.5, -1.0)):
        with pytest.raises(ValueError, match="low_image must be positive"):
            Towers(*sizes)
    with pytest.raises(ValueError, match="cannot be used again"):
        FlopMeter(PAPER, low_scoring=True, reuse=True)
