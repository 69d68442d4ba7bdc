"""The joint draw over the shards of a super-batch, one process each on torch.distributed: the same picks as in one.

A shard scores its own candidates only. A round exchanges two things: the best keys of each shard, from which all of
them find the same picks; and the picks' embeddings, from their owners. Every sum that makes a score has the same terms
in the same order as in one process, so that scores are bit-equal too (if torch has as many threads as there).

    ShardError
    ├── ShardsDisagree   calls do not belong together, or shards cannot fill the plan; all of them raise it
    └── ShardLost        a shard is gone, or does not come in time; the group is of no use any more
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import timedelta
from enum import Enum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from selector_server.sampling.embeddings import Embedded
from selector_server.sampling.joint import Drawn, draw_in_chunks
from selector_server.sampling.noise import best
from selector_server.sampling.plan import Picks, Plan
from selector_server.sampling.scores import PairScores

# The version of what is exchanged. It must be raised with every change of that, or of the bits of a score.
VERSION = 4
# Size of the record that every shard shows before the first round.
RECORD_BYTES = 4096
# Fields of PairScores that each shard has its own of; all others must agree, and so must the whole plan.
OWN = frozenset({"learner", "reference", "learner_losses", "check", "open", "recent"})
# What errors call a field, where that is not its name.
CALLED = {"sizes": "chunk sizes"}


class ShardError(Exception):
    """A selection over several shards has failed."""


class ShardsDisagree(ShardError):
    """Shards were not called alike. It names the first field that differs, and two values."""


class ShardLost(ShardError):
    """A shard is missing. It names the exchange that did not come about."""


def pick_sharded(
    scores: PairScores, plan: Plan, group: dist.ProcessGroup | None = None, timeout_seconds: float = 60.0
) -> Picks:
    """What Joint().pick returns for the candidates of all shards, rank 0's first.

    The picks are equal on all shards and equal to those of one process, bit for bit but for `total`, which is added up
    in another order. For super-batches that one process would score at once (losses/all_pairs.py), scores are equal to
    within rounding.

    Every process of `group` (default: all) must call it with its own candidates in `scores`, any number of them, and
    with the same plan. Indices count through all shards. With plan.ranks > 1, which must be their number, shards hold
    equally many candidates and every chunk takes equally many of each. Tensors travel on the candidates' device; with
    gloo, through host memory. No exchange waits longer than `timeout_seconds`; give the group the same timeout, or
    gloo's own threads wait on for it. `scores.check` is not asked: the other shards wait for this one. Raises
    ShardsDisagree and ShardLost.
    """
    shards = _Shards(group, scores.device, timeout_seconds)
    pool = _ShardedPool(shards, scores, _agree(shards, scores, plan), balanced=plan.ranks > 1)
    return draw_in_chunks(scores, scores.streamed(), plan, pool)


class _Shards:
    """The exchanges between all shards. Each of them ends in time, or raises ShardLost."""

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device, timeout_seconds: float) -> None:
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        self.device = torch.device("cpu") if dist.get_backend(group) == "gloo" else device
        self._group, self._seconds = group, timeout_seconds

    def gather(self, what: str, mine: Tensor) -> Tensor:
        """The tensors of all W shards, which must have one shape: [W, *shape]. `what` names them in errors."""
        mine = mine.to(self.device)
        everyones = mine.new_empty((self.count, *mine.shape))
        self._wait(what, lambda: dist.all_gather(list(everyones), mine, self._group, async_op=True))
        return everyones

    def add(self, what: str, mine: Tensor) -> Tensor:
        """The sum of all shards' tensors."""
        total = mine.to(self.device)
        self._wait(what, lambda: dist.all_reduce(total, group=self._group, async_op=True))
        return total

    def _wait(self, what: str, start: Callable[[], Any]) -> None:
        try:
            start().wait(timedelta(seconds=self._seconds))
        except RuntimeError as error:  # all that torch.distributed says about a peer
            cause = str(error).partition(". ")[0]
            raise ShardLost(
                f"shard {self.rank} of {self.count} is missing another's {what} (waits {self._seconds:g} s): {cause}"
            ) from error


def _agree(shards: _Shards, scores: PairScores, plan: Plan) -> list[int]:
    """The number of candidates of each shard. Raises ShardsDisagree unless all were called alike, and unless enough
    candidates are open."""
    count = scores.size if scores.open is None else int(scores.open.sum())
    shown = json.dumps([scores.size, count, _record(scores, plan)]).encode().ljust(RECORD_BYTES)
    everyones = shards.gather("call", torch.frombuffer(bytearray(shown), dtype=torch.uint8)).cpu().numpy()
    records = [json.loads(record.tobytes()) for record in everyones]
    for name, value in records[0][2].items():
        for rank, (_, _, record) in enumerate(records):
            if record.get(name) != value:
                raise ShardsDisagree(
                    f"shards disagree on {name}: shard 0 has {value}, shard {rank} has {record.get(name)}"
                )
    sizes, opened = ([int(record[at]) for record in records] for at in (0, 1))
    if plan.picks > sum(opened):
        held = f"{sum(sizes)} candidates" + (f", {sum(opened)} of them open" if sum(opened) < sum(sizes) else "")
        raise ShardsDisagree(f"the plan has {plan.picks} picks; shards hold {held}")
    if plan.ranks not in {1, shards.count}:
        raise ShardsDisagree(f"the plan has {plan.ranks} ranks; must be 1 or the number of shards, {shards.count}")
    if plan.ranks > 1 and len(set(sizes)) > 1:
        raise ShardsDisagree(f"shards hold {min(sizes)} to {max(sizes)} candidates; must be equal for balanced picks")
    if plan.picks // plan.ranks > min(opened) and plan.ranks > 1:
        counts = ", ".join(map(str, opened))
        raise ShardsDisagree(f"shards hold {counts} open candidates; each needs {plan.picks // plan.ranks}")
    return sizes


def _record(scores: PairScores, plan: Plan) -> dict[str, str]:
    """What must be equal on all shards, the most telling first."""
    models = scores.shown
    sides = [side for model in models for side in (model.image, model.text)]
    values = {
        "version": (VERSION, torch.__version__),
        **_settings(scores, without=OWN),
        # The last fields come first: sizes depend on the number of ranks.
        **dict(reversed(_settings(plan, without=frozenset()).items())),
        "logit scales": [float(model.scale) for model in models],
        "logit biases": [float(model.bias) for model in models],
        "dtypes": [str(side.dtype) for side in sides],
        "widths": [side.shape[1] for side in sides],
        "embeddings for each candidate": all(len(side) == scores.size for side in sides),
        "device": scores.device.type,
    }
    texts = {name: str(value) for name, value in values.items()}
    return {
        name: text if len(text) < 160 else f"{text[:120]}… (SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"
        for name, text in texts.items()
    }


def _settings(settings: PairScores | Plan, without: frozenset[str]) -> dict[str, object]:
    """All fields of a dataclass `without` some, by the names that they have in errors."""
    values: dict[str, object] = {}
    for field in fields(settings):
        if field.name in without:
            continue
        value = getattr(settings, field.name)
        if isinstance(value, Enum):
            value = value.name
        elif field.type is float:
            value = float(value)  # so that 100 is 100.0
        values[CALLED.get(field.name, field.name.replace("_", " "))] = value
    return values


class _ShardedPool:
    """The candidates of all shards, of which this process holds one: from index `first` on, `sizes[rank]` of them."""

    def __init__(self, shards: _Shards, scores: PairScores, sizes: Sequence[int], balanced: bool) -> None:
        self._shards, self._scores, self._balanced = shards, scores, balanced
        self._ends = torch.tensor(sizes, device=shards.device).cumsum(0)
        self.first, self.size = sum(sizes[: shards.rank]), sum(sizes)

    def draw(self, ranking: Tensor, score: Tensor, size: int) -> Drawn:
        index, index_score = self._best_of_all(ranking, score, size)
        owner = torch.searchsorted(self._ends, index, right=True)
        here = owner == self._shards.rank
        rows = (index[here] - self.first).to(ranking.device)
        return Drawn(index, index_score, here, self._scores.chunk_of(self._embeddings(rows, owner), rows))

    def total(self, here: float) -> float:
        return float(self._shards.gather("totals", torch.tensor([here], dtype=torch.float64)).sum())

    def _best_of_all(self, ranking: Tensor, score: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Index among all candidates, int64 [size], and score, float64 [size], of a chunk's picks in draw order.

        Every shard offers its best. Offers come in the order of ranks, so that ties go to the lower index. A shard
        whose offers were all taken may have more to give: then all offer twice as many.
        """
        shards, first = self._shards, self.first
        offers = size // shards.count if self._balanced else min(size, 2 * -(-size // shards.count) + 16)
        while True:
            rows = best(ranking, offers)
            mine = torch.full((3, offers), -torch.inf, dtype=torch.float64, device=ranking.device)
            mine[:, : len(rows)] = torch.stack([ranking[rows], (rows + first).double(), score[rows]])
            key, index, index_score = shards.gather("keys", mine).transpose(0, 1).reshape(3, -1)
            picks = torch.arange(len(key), device=key.device) if self._balanced else best(key, size)
            if self._balanced or offers == size or int(torch.bincount(picks // offers).max()) < offers:
                picks = picks[key[picks] > -torch.inf]
                return index[picks].long(), index_score[picks]
            offers = min(size, 2 * offers)

    def _embeddings(self, rows: Tensor, owner: Tensor) -> list[Embedded]:
        """A chunk's picks as each model sees them, in draw order, from their owners. `rows`, int64 [n], are the picks
        held here, and `owner`, int64 [m], says who holds each of all picks.

        They travel as bytes: padded to equal blocks, or, when few shards own most picks, as a sum with zeros.
        """
        shards, models = self._shards, self._scores.shown
        if not models:
            return []
        sides = [side for model in models for side in (model.image, model.text)]
        mine = torch.cat([side[rows].view(torch.uint8) for side in sides], dim=1).to(shards.device)
        counts = torch.bincount(owner, minlength=shards.count)
        most = int(counts.max())
        block = mine.new_zeros((len(owner), mine.shape[1]))
        if most * shards.count > 2 * len(owner):
            block[owner == shards.rank] = mine
            block = shards.add("embeddings", block)
        else:
            padded = mine.new_zeros((most, mine.shape[1]))
            padded[: len(mine)] = mine
            filled = torch.arange(most, device=shards.device) < counts[:, None]
            block[torch.argsort(owner, stable=True)] = shards.gather("embeddings", padded)[filled]
        parts = torch.split(block.to(rows.device), [side.shape[1] * side.element_size() for side in sides], dim=1)
        picked = iter([part.contiguous().view(side.dtype) for part, side in zip(parts, sides, strict=True)])
        return [Embedded(next(picked), next(picked), model.scale, model.bias) for model in models]
