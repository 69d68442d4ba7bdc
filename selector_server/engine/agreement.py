"""What sidecars that select as one agree on before they draw: that all of them have a step's request, and its turn.

A rank's record of what it asks for lies in the peers' store; sidecar 0 concludes from all of them that the step is
drawn, and when. Whoever cannot wait any longer says that it is not. The first outcome written counts, for all alike.
"""

import json
import time
from typing import Any

from selector_server.engine.joining import RankSettings, check_alike, listed
from selector_server.engine.peer_link import Generation
from selector_server.engine.task import Member
from selector_server.engine.waiting import TICK_SECONDS
from selector_server.errors import GroupFailed, InvalidRequest
from selector_server.sampling.sharded import ShardLost


class Asked:
    """One rank's request as its peers see it: keys of the generation's store. Used by many threads."""

    def __init__(self, generation: Generation, member: Member) -> None:
        self.generation, self.member, self.concluded = generation, member, False
        name = f"{member.step}/{member.group}"
        self._outcome = f"outcome/{name}"
        self._records = [f"record/{rank}/{name}" for rank in range(member.world_size)]

    def failed(self, limit: str) -> GroupFailed:
        group, step, count = repr(self.member.group), self.member.step, self.member.world_size
        return GroupFailed("group", group, f"step {step} of its {count} ranks failed: {limit}")

    def outcome(self, record: dict[str, Any], until: float, seconds: float) -> dict[str, Any]:
        """What all peers see alike: "turn" and "seed", or why there are none. Waits until `until`, time.monotonic(),
        which is `seconds` from now or less. Raises RuntimeError when the store is gone, ShardLost with the group."""
        store, started = self.generation.store, time.monotonic()
        rank = self.member.rank
        if not store.check([self._outcome]):
            store.set(self._records[rank], json.dumps(record))
        while not store.check([self._outcome]):
            if self.generation.over:
                raise ShardLost(f"generation {self.generation.number} of the sidecars ended")
            if rank == 0 and store.check(self._records):
                self._conclude()
            elif (now := time.monotonic()) >= until:
                missing = listed([one for one, key in enumerate(self._records) if not store.check([key])])
                late = f"within {seconds:g} s" if now - started >= seconds else "in time"
                self.fail(f"rank {missing} did not come {late}")
            else:
                time.sleep(TICK_SECONDS)
        self.concluded = True
        outcome: dict[str, Any] = json.loads(store.get(self._outcome))
        return outcome

    def _conclude(self) -> None:
        records = [json.loads(record) for record in self.generation.store.multi_get(self._records)]
        first, *others = [RankSettings(rank, record["settings"]) for rank, record in enumerate(records)]
        try:
            for other in others:
                check_alike(first, other)
        except InvalidRequest as error:
            self._write({"invalid": [error.field, error.value, error.limit]})
            return
        with self.generation.numbering:  # turns have no gaps
            if self._write({"turn": self.generation.turns, "seed": records[0]["seed"]}):
                self.generation.turns += 1

    def fail(self, limit: str) -> bool:
        """Refuses all ranks, unless there is an outcome; whether there was none."""
        return not self.concluded and self._write({"failed": limit})

    def _write(self, outcome: dict[str, Any]) -> bool:
        text = json.dumps(outcome)
        first: bytes = self.generation.store.compare_set(self._outcome, "", text)
        return first == text.encode()

    def forget(self) -> None:
        """Of all ranks, so that the step may be asked for again."""
        for key in (self._outcome, *self._records):
            self.generation.store.delete_key(key)
