"""`selector bench load`, at sizes that say nothing, and its arithmetic."""

import json

import pytest
from selector_proto.v1 import selector_pb2 as pb
from selector_tools import cli
from selector_tools.bench.load_phases import Window, figures, goodput_ratio
from selector_tools.bench.load_trainers import Outcome, Request
from selector_tools.bench.measuring import percentile_of_buckets

TINY = ["--candidates", "40", "--dim", "8", "--trainers", "2", "--seconds", "0.5", "--repeats", "1", "--soak", "1"]


@pytest.mark.timeout(300)  # the sidecar starts twice
def test_load_prints_one_json_object(capsys):
    assert cli.main(["bench", "load", *TINY, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["wrong_answers"] == 0
    assert result["checked_answers"] > 0
    assert 0 < result["recovery_seconds"] < 60
    assert result["goodput_ratio"] > 0
    assert abs(result["rss_growth"]) < 1
    peak = result["peak"]
    assert peak["candidates_per_second"] == pytest.approx(40 * peak["selections_per_second"])
    assert list(result["ramp"]) == ["1", "2", "4", "8", "16"]
    assert str(peak["in_flight"]) in result["ramp"]
    assert list(result["loads"]) == ["0.5", "1.0", "1.5", "2.0"]
    assert {name: len(values) for name, values in result["rounds"].items()} == {
        "peak": 2,
        **dict.fromkeys(result["loads"], 1),
    }
    for load in (*result["loads"].values(), result["soak"]):
        assert load["status"]["OK"] > 0
        assert 0 < load["accepted_p50_ms"] <= load["accepted_p99_ms"]
        assert load["trainers_busy"] > 0
    assert result["recovery_status"]["UNAVAILABLE"] > 0, "it was killed under load"
    assert result["setting"]["trainers"] == 2
    assert {"reject_p99_ms", "reject_client_p99_ms", "device", "versions", "load_average"} <= result.keys()


def outcome(due, done, code="OK", wrong=False):
    return Outcome(0, due, 0.0, done, code, wrong)


def window(*outcomes, rejects=None):
    return Window(10.0, 20.0, list(outcomes), 0.5, rejects or {})


def test_goodput_counts_right_answers_that_came_within_the_window():
    outcomes = [outcome(9, 11), outcome(12, 13), outcome(12, 13, wrong=True), outcome(19, 21), outcome(8, 9)]
    refused = outcome(12, 12.5, "RESOURCE_EXHAUSTED")
    found = figures([window(*outcomes, refused)])
    assert found["selections_per_second"] == pytest.approx(0.2)
    assert found["status"] == {"OK": 3, "RESOURCE_EXHAUSTED": 1}
    assert found["accepted_p50_ms"] == pytest.approx(1000)
    assert found["reject_client_p99_ms"] == pytest.approx(500)
    assert found["reject_p99_ms"] is None


def test_rejects_of_all_windows_are_taken_together():
    edges = {0.01: 0.0, 0.05: 90.0, 0.1: 100.0, float("inf"): 100.0}
    found = figures([window(rejects=edges), window(rejects=dict.fromkeys(edges, 0.0) | {float("inf"): 0.0})])
    assert found["reject_p50_ms"] == pytest.approx(1000 * (0.01 + 0.04 * 50 / 90))
    assert found["reject_p99_ms"] == pytest.approx(95)
    assert found["accepted_p99_ms"] is None


def test_goodput_at_twice_the_peak_is_compared_with_the_peaks_around_it():
    def of(count):
        return window(*(outcome(11, 12) for _ in range(count)))

    assert goodput_ratio([of(10), of(30), of(20)], [of(16), of(30)]) == pytest.approx((0.8 + 1.2) / 2)


def test_quantiles_are_prometheuss():
    buckets = {0.1: 50.0, 0.2: 50.0, 0.4: 90.0, float("inf"): 100.0}
    assert percentile_of_buckets(buckets, 0.25) == pytest.approx(0.05)
    assert percentile_of_buckets(buckets, 0.5) == pytest.approx(0.1)
    assert percentile_of_buckets(buckets, 0.7) == pytest.approx(0.3)
    assert percentile_of_buckets(buckets, 0.99) == 0.4
    assert percentile_of_buckets({}, 0.5) is None
    assert percentile_of_buckets({0.1: 0.0, float("inf"): 0.0}, 0.5) is None


def reply(*indices, version=0):
    return pb.SelectResponse(indices=indices, weights=pb.WeightsVersion(version=version))


def test_an_answer_is_right_if_it_is_the_one_of_the_server_without_load():
    request = Request([b""], candidates=10, picks=3)
    request.learn(reply(4, 1, 9))
    assert request.answered_by(reply(4, 1, 9))
    for other in (reply(1, 4, 9), reply(4, 1), reply(4, 1, 9, 2), reply(4, 1, 9, version=1)):
        assert not request.answered_by(other)


@pytest.mark.parametrize("indices", [(4, 1), (4, 1, 1), (4, 1, 10), ()])
def test_what_cannot_be_right_is_not_learnt(indices):
    with pytest.raises(RuntimeError, match="which are not 3 different of 10"):
        Request([b""], candidates=10, picks=3).learn(reply(*indices))


def test_each_time_a_request_is_sent_it_has_an_id_of_its_own():
    whole = pb.SelectRequest(selection=pb.Selection(seed=7), payload=b"abc")
    request = Request([whole.SerializeToString(), b"more"], candidates=10, picks=3)
    (first, more), (second, _) = request.stream(), request.stream()
    messages = [pb.SelectRequest.FromString(one) for one in (first, second)]
    assert more == b"more"
    assert all(message.payload == b"abc" and message.selection.seed == 7 for message in messages)
    assert len({message.selection.request_id for message in messages} - {""}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--candidates", "4"], "--candidates is 4; must be 5 to 65536"),
        (["--dim", "-1"], "--dim is -1; must be 1 to 8192, or 0 for raw samples"),
        (["--trainers", "0"], "--trainers is 0; must be 1 to 64"),
        (["--seconds", "nan"], "--seconds is nan; must be 0.1 to 600"),
        (["--repeats", "0"], "--repeats is 0; must be 1 to 100"),
        (["--soak", "0"], "--soak is 0.0; must be 1 to 86400"),
    ],
)
def test_mistakes_take_one_line(arguments, message, capsys):
    assert cli.main(["bench", "load", *arguments]) == 2
    assert capsys.readouterr().err == f"selector bench load: {message}\n"
