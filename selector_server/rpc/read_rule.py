"""How candidates are compared, from a Selection: criteria, loss, and what keeps candidates out (docs/adr/0021)."""

import math
from collections.abc import Mapping
from typing import Any

from selector_proto.v1 import selector_pb2 as pb

from selector_server.engine.task import Rule
from selector_server.errors import InvalidRequest
from selector_server.sampling import Criterion, Loss, Needs, Policy
from selector_server.sampling.scores import check_criteria

# More than any super-batch has candidates for each pick.
MAX_PREFILTER = 1e6

CRITERIA: Mapping[int, Criterion] = {
    pb.CRITERION_UNSPECIFIED: Criterion.LEARNABILITY,
    pb.CRITERION_LEARNABILITY: Criterion.LEARNABILITY,
    pb.CRITERION_EASY_REFERENCE: Criterion.EASY_REFERENCE,
    pb.CRITERION_HARD_LEARNER: Criterion.HARD_LEARNER,
}
PAIR_CRITERIA: Mapping[int, Criterion] = {**CRITERIA, pb.CRITERION_NONE: Criterion.NONE}
LOSSES: Mapping[int, Loss] = {
    pb.LOSS_UNSPECIFIED: Loss.SIGMOID,
    **{pb.Loss.Value(f"LOSS_{loss.name}"): loss for loss in Loss},
}


def read_rule(selection: pb.Selection, policy: Policy, models_loss: Loss) -> Rule:
    """`models_loss` is the one of raw samples unless the request says otherwise. Raises InvalidRequest."""
    criterion = enum_of("criterion", selection.criterion, CRITERIA, pb.Criterion)
    pairs = enum_of("pair_criterion", selection.pair_criterion, PAIR_CRITERIA, pb.Criterion)
    if selection.pair_criterion == pb.CRITERION_UNSPECIFIED:
        pairs = criterion
    loss = loss_of(selection, models_loss)
    try:
        check_criteria(criterion, pairs, loss)
    except ValueError as error:
        raise InvalidRequest("pair_criterion", pairs.name, str(error)) from error
    if policy.needs is Needs.NOTHING:
        return Rule(criterion, pairs, loss)
    if selection.return_losses and loss is not Loss.SIGMOID:
        raise InvalidRequest("return_losses", "set", f"a candidate by itself has no loss of its own by {loss.value}")
    rule = Rule(criterion, pairs, loss, _prefilter(selection), _max_similarity(selection, policy))
    for name in ("prefilter", "max_similarity"):
        if (value := getattr(rule, name)) is not None and not rule.needs_reference:
            raise InvalidRequest(name, value, f"the reference does not look at candidates by criterion {rule.name}")
    return rule


def loss_of(selection: pb.Selection, models_loss: Loss) -> Loss:
    """The loss by which candidates are compared. Raises InvalidRequest."""
    # Candidates that have names only are raw samples, too, which the client has not sent yet.
    if selection.WhichOneof("candidates") in ("samples", None) and selection.loss == pb.LOSS_UNSPECIFIED:
        return models_loss
    found: Loss = enum_of("loss", selection.loss, LOSSES, pb.Loss)
    return found


def explored(selection: pb.Selection, policy: Policy, picks: int) -> int:
    """How many of so many picks are drawn uniformly, whatever they score. Raises InvalidRequest."""
    share = selection.explore
    if not selection.HasField("explore") or policy.needs is Needs.NOTHING:
        return 0
    if not 0 < share < 1:  # NaN fails too
        raise InvalidRequest("explore", share, "must lie between 0 and 1, both excluded")
    _needs_rounds("explore", share, policy)
    return min(math.floor(share * picks + 1e-6), picks - 1)


def _prefilter(selection: pb.Selection) -> float | None:
    if not selection.HasField("prefilter"):
        return None
    if not 1 <= selection.prefilter <= MAX_PREFILTER:  # NaN fails too
        limit = f"must be 1 to {MAX_PREFILTER:g}: so many candidates a pick go on"
        raise InvalidRequest("prefilter", selection.prefilter, limit)
    samples = selection.WhichOneof("candidates") == "samples"
    if samples and not selection.HasField("sample_ids") and not selection.samples.HasField("reference"):
        limit = "needs sample_ids or samples.reference: without them no candidate's reference loss is known"
        raise InvalidRequest("prefilter", selection.prefilter, limit)
    return selection.prefilter


def _max_similarity(selection: pb.Selection, policy: Policy) -> float | None:
    if not selection.HasField("max_similarity"):
        if selection.HasField("recent"):
            raise InvalidRequest("recent", "set", "needs max_similarity")
        return None
    if not 0 < selection.max_similarity < 1:  # NaN fails too
        raise InvalidRequest("max_similarity", selection.max_similarity, "must lie between 0 and 1, both excluded")
    if selection.WhichOneof("candidates") == "losses":
        limit = "losses do not tell which candidates are alike"
        raise InvalidRequest("max_similarity", selection.max_similarity, limit)
    if selection.HasField("recent") and selection.world_size > 1:
        raise InvalidRequest("recent", "set", f"{selection.world_size} ranks that select as one have none")
    _needs_rounds("max_similarity", selection.max_similarity, policy)
    return selection.max_similarity


def _needs_rounds(name: str, value: float, policy: Policy) -> None:
    if not policy.in_rounds:
        raise InvalidRequest(name, value, f"policy {policy.name!r} draws in a way of its own; leave it unset")


def enum_of(field: str, value: int, table: Mapping[int, Any], enum: Any) -> Any:
    """What the value of a protobuf enum stands for. Raises InvalidRequest."""
    if value not in table:
        name = enum.Name(value) if value in enum.values() else value
        raise InvalidRequest(field, name, f"must be one of {', '.join(map(enum.Name, table))}")
    return table[value]
