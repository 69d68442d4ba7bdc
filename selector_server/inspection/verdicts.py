"""What the numbers mean, in plain words, and what to do about it: a pure function of what was observed."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import selector_pb2

from selector_server.inspection.observation import Fate, Observation

# So many of the last selections are judged together.
JUDGED = 32
# Neighbours may be so much of the way from a random candidate to the very same one (the client warns of that, too), and
# so large a share of the picks may have a near-duplicate among the candidates.
MOST_ADJACENT, MOST_DUPLICATES = 0.1, 0.2
# A reference knows nothing of captions if their own loss is no lower than this part of that of others' captions.
UNKNOWN = 0.9
# Picks are no better than the pool if their mean score is higher by less than so many of its standard deviations.
NO_BETTER = 0.05
# So large a share of the candidates may be excluded.
MOST_EXCLUDED = 0.05
# With a gain above the usual one, so much of the weight of a draw may lie on as many candidates as a chunk has picks
# before the draw is as good as taking the best; and below so much more than a uniform draw's, scores decide nothing.
USUAL_GAIN, TOP_K, UNIFORM = 100.0, 0.999, 1.05
# Where the trainer says nothing of how old weights may be, they are old beyond this.
MOST_LAG_STEPS, MOST_AGE_SECONDS = 1000, 3600.0

Judge: TypeAlias = Callable[[Sequence[Observation]], pb.Verdict | None]


def verdicts(
    seen: Sequence[Observation], unserved: selector_pb2.UnservedWeights | None = None, fallbacks: int = 0
) -> list[pb.Verdict]:
    """What is wrong, most serious first, or that nothing is. `seen` are the last selections, oldest first; `unserved`
    says why the newest weights are not served, and `fallbacks` is how many batches were drawn uniformly."""
    if not seen:
        return [_odd("nothing was selected yet", "a trainer's Selector must be given this sidecar's address")]
    recent = seen[-JUDGED:]
    found = [_unserved(recent, unserved), _fallbacks(recent, fallbacks), *(judge(recent) for judge in JUDGES)]
    wrong = [verdict for verdict in found if verdict is not None]
    wrong.sort(key=lambda verdict: -verdict.level)
    return wrong or [_good(recent)]


def _unserved(recent: Sequence[Observation], unserved: selector_pb2.UnservedWeights | None) -> pb.Verdict | None:
    if unserved is None or unserved.state not in (
        selector_pb2.SYNC_STATE_REJECTED,
        selector_pb2.SYNC_STATE_DISCONNECTED,
        selector_pb2.SYNC_STATE_PINNED,
    ):
        return None
    weights = recent[-1].weights
    since = "" if weights is None else f" since step {weights.trainer_step}"
    match unserved.state:
        case selector_pb2.SYNC_STATE_REJECTED:
            return _bad(f"newest weights refused{since}: {unserved.reason}", "the runbook says what each reason means")
        case selector_pb2.SYNC_STATE_DISCONNECTED:
            return _bad(f"the store of weights is not reached{since}: {unserved.reason}", "look at the store")
        case _:
            return _odd(f"weights are pinned{since}, and newer ones wait", "`selector weights unpin` takes them")


def _fallbacks(recent: Sequence[Observation], fallbacks: int) -> pb.Verdict | None:
    if not fallbacks:
        return None
    told = [(one.trainer, one.fallbacks) for one in recent if one.fallbacks is not None]
    first, last = dict(reversed(told)), dict(told)
    new = sum(last[trainer] - first[trainer] for trainer in last)
    advice = "the trainer's log says why: mostly a deadline, or a sidecar that was away"
    if new > 0:
        share = new / (new + len(recent))
        return _bad(f"{share:.0%} of the last batches were drawn uniformly, because no selection came", advice)
    return _odd(f"{fallbacks} batches were drawn uniformly, because no selection came; none lately", advice)


def _shuffling(recent: Sequence[Observation]) -> pb.Verdict | None:
    told = [one.locality for one in recent if one.locality is not None]
    if not told:
        return None
    adjacent, random, near = np.mean([(one.adjacent, one.random, one.near_duplicates) for one in told], 0)
    advice = "shuffle more: read many shards in turns through a buffer of many super-batches"
    if adjacent - random > MOST_ADJACENT * (1 - random):
        words = f"the stream's neighbours are alike: their mean cosine is {adjacent:.2f}, that of others {random:.2f}"
        return _bad(f"{words}; {near:.0%} of the picks have a near-duplicate beside them", advice)
    if near >= MOST_DUPLICATES:
        return _odd(f"{near:.0%} of the picks have a near-duplicate beside them", f"{advice}; or set max_similarity")
    return None


def _reference(recent: Sequence[Observation]) -> pb.Verdict | None:
    told = [
        (one.point.pool_reference_loss, one.shuffled_loss)
        for one in recent
        if one.shuffled_loss is not None and one.point.HasField("pool_reference_loss")
    ]
    if not told:
        return None
    own, shuffled = np.mean(told, 0)
    # Losses of a softmax may be of either sign: what counts is how far they are apart.
    if own < shuffled - (1 - UNKNOWN) * abs(shuffled):
        return None
    words = f"the reference knows none of these captions: their mean loss is {own:.2f}, that of others' captions"
    return _bad(f"{words} {shuffled:.2f}", "fit the reference to data like these, or take a rule without it")


def _no_better(recent: Sequence[Observation]) -> pb.Verdict | None:
    gains = [gain for one in recent if (gain := _gain_of(one)) is not None]
    if not gains or np.mean(gains) >= NO_BETTER:
        return None
    words = f"picks score no better than the pool: {np.mean(gains):+.2f} of its standard deviations on average"
    return _bad(words, "raise gain or filter_ratio; if learner and reference are one model, no sample is learnable")


def _gain_of(one: Observation) -> float | None:
    """By how many standard deviations of the pool the picks' mean score is above the pool's."""
    if one.scores is None or not (one.point.HasField("picked") and one.point.HasField("pool")):
        return None
    return (one.point.picked - one.point.pool) / one.spread if one.spread else 0.0


def _excluded(recent: Sequence[Observation]) -> pb.Verdict | None:
    candidates = sum(one.size for one in recent)
    reasons = Counter(reason for one in recent for reason in one.reasons.values())
    if reasons.total() <= MOST_EXCLUDED * candidates:
        return None
    why, count = reasons.most_common(1)[0]
    words = f"{reasons.total() / candidates:.0%} of the candidates are excluded, most of them as {why.value} ({count})"
    return _odd(words, "look at the excluded ones, and mend what reads or writes them")


def _gain(recent: Sequence[Observation]) -> pb.Verdict | None:
    """Looks at the last draw's first chunk: what share of its weight lies on the best candidates."""
    one = recent[-1]
    if one.scores is None or one.rule.get("draw") != "sample":
        return None
    own = one.scores[np.isin(one.fates, (Fate.PICKED, Fate.DROPPED, Fate.KEPT_APART))].astype(np.float64)
    chunk = max(1, (int((one.fates == Fate.PICKED).sum()) // int(one.rule["chunks"])))
    if len(own) <= chunk:
        return None
    gain = float(one.rule["gain"])
    weight = np.exp(gain * (own - own.max()))
    share = np.partition(weight, -chunk)[-chunk:].sum() / weight.sum()
    if gain > USUAL_GAIN and share > TOP_K and len(own) > 4 * chunk:
        words = f"the gain, {gain:g}, is so high that the draw takes the best, and nothing else has a chance"
        return _odd(words, "lower gain for more variety; exploring some picks helps, too")
    if share < UNIFORM * chunk / len(own):
        words = f"the gain, {gain:g}, is so low that scores hardly count: the draw is almost uniform"
        return _odd(words, "raise gain")
    return None


def _old(recent: Sequence[Observation]) -> pb.Verdict | None:
    weights = recent[-1].weights
    if weights is None:
        return None
    advice = "publish more often, or see why the trainer's publisher does not"
    if weights.stale:
        return _bad(
            f"weights are older than the trainer accepts: {_age(weights.lag_steps, weights.age_seconds)}", advice
        )
    if (weights.lag_steps or 0) > MOST_LAG_STEPS or weights.age_seconds > MOST_AGE_SECONDS:
        return _odd(f"weights are old: {_age(weights.lag_steps, weights.age_seconds)}", advice)
    return None


JUDGES: Sequence[Judge] = (_shuffling, _reference, _no_better, _old, _excluded, _gain)


def _good(recent: Sequence[Observation]) -> pb.Verdict:
    gains = [one.point.picked - one.point.pool for one in recent if one.scores is not None]
    if not gains:
        return _verdict(pb.VERDICT_LEVEL_GOOD, "picks are drawn uniformly, as the trainer asks", "")
    words = f"selection works: picks score {np.mean(gains):.2f} nats above the pool"
    return _verdict(pb.VERDICT_LEVEL_GOOD, words, "")


def _age(lag: int | None, seconds: float) -> str:
    behind = "" if lag is None else f"{lag} steps behind, "
    return f"{behind}{seconds:.0f} s old"


def _odd(finding: str, advice: str) -> pb.Verdict:
    return _verdict(pb.VERDICT_LEVEL_ODD, finding, advice)


def _bad(finding: str, advice: str) -> pb.Verdict:
    return _verdict(pb.VERDICT_LEVEL_BAD, finding, advice)


def _verdict(level: pb.VerdictLevel.ValueType, finding: str, advice: str) -> pb.Verdict:
    return pb.Verdict(level=level, finding=_sentence(finding), advice=_sentence(advice))


def _sentence(words: str) -> str:
    """Words that may quote a reason of somebody else's as one sentence."""
    return words[:1].upper() + words[1:] + ("" if not words or words.endswith((".", "`")) else ".")
