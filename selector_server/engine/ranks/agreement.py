"""Sidecars that select as one agree before they draw: that all of them have a step's request, and when it is its turn.

A rank's record of what it asks for lies in the peers' store; sidecar 0 concludes from all of them that the step is
drawn, and when. Whoever cannot wait any longer says that it is not. The first outcome written counts, for all alike.
"""

import json
import secrets
import time
from typing import Any

from selector_server.engine.dispatcher import TICK_SECONDS
from selector_server.engine.ranks.joining import RankSettings, check_alike, listed
from selector_server.engine.ranks.one_sidecar import REMEMBERED_SECONDS
from selector_server.engine.ranks.process_group import Generation
from selector_server.engine.task import Member
from selector_server.errors import GroupFailed, InvalidRequest
from selector_server.sampling.sharded import ShardLost


class Asked:
    """One rank's request as its peers see it: keys of the generation's store. Used by many threads."""

    def __init__(self, generation: Generation, member: Member) -> None:
        self.generation, self.member, self.concluded = generation, member, False
        name = f"{member.step}/{member.group}"
        self._nonce = secrets.token_hex(8)
        self._outcome = f"outcome/{name}"
        self._records: list[str] = [f"record/{rank}/{name}" for rank in range(member.world_size)]
        # They are deleted in this order: no record may be left when the step is asked for again.
        self._keys = [*self._records, self._outcome]

    def failed(self, limit: str) -> GroupFailed:
        group, step, count = repr(self.member.group), self.member.step, self.member.world_size
        return GroupFailed("group", group, f"step {step} of its {count} ranks failed: {limit}")

    def outcome(self, record: dict[str, Any], until: float, late: str) -> dict[str, Any]:
        """What all peers see alike: "turn" and "seed", or why there are none, "failed" or "invalid". `record`: this
        rank's "settings", "seed" and "weights", the version's number or None. Waits until `until`, time.monotonic();
        ranks that are missing then did not come `late`, in words that name the limit. Raises RuntimeError when the
        store is gone, ShardLost with the group."""
        store, rank = self.generation.store, self.member.rank
        self._forget_refused()
        if not store.check([self._outcome]):
            store.set(self._records[rank], json.dumps(record | {"nonce": self._nonce}))
        while not store.check([self._outcome]):
            if self.generation.over:
                raise ShardLost(f"generation {self.generation.number} of the sidecars ended")
            if rank == 0 and store.check(self._records):
                self._conclude()
            elif time.monotonic() >= until:
                missing = listed([one for one, key in enumerate(self._records) if not store.check([key])])
                self.fail(f"rank {missing} did not come {late}")
            else:
                time.sleep(TICK_SECONDS)
        self.concluded = True
        outcome: dict[str, Any] = json.loads(store.get(self._outcome))
        if "turn" in outcome and outcome["nonces"][rank] != self._nonce:
            return {"failed": f"rank {rank} asked again while the draw ran"}
        return outcome

    def _conclude(self) -> None:
        records = [json.loads(record) for record in self.generation.store.multi_get(self._records)]
        first, *others = [RankSettings(rank, record["settings"]) for rank, record in enumerate(records)]
        try:
            for other in others:
                check_alike(first, other)
        except InvalidRequest as error:
            self._refuse({"invalid": [error.field, error.value, error.limit]})
            return
        versions = [record["weights"] for record in records]
        for rank, version in enumerate(versions):
            if version != versions[0]:
                self.fail(f"weights version is {versions[0]} on rank 0 and {version} on rank {rank}")
                return
        nonces = [record["nonce"] for record in records]
        with self.generation.lock:  # Turns have no gaps.
            if self._write({"turn": self.generation.turns, "seed": records[0]["seed"], "nonces": nonces}):
                self.generation.turns += 1

    def fail(self, limit: str) -> None:
        """Refuses all ranks, unless there is an outcome."""
        if not self.concluded:
            self._refuse({"failed": limit})

    def _refuse(self, outcome: dict[str, Any]) -> None:
        if self._write(outcome):
            self.generation.refused.append((time.monotonic(), self._keys))

    def _write(self, outcome: dict[str, Any]) -> bool:
        text = json.dumps(outcome)
        first: bytes = self.generation.store.compare_set(self._outcome, "", text)
        return first == text.encode()

    def _forget_refused(self) -> None:
        """Late ranks are refused for a while; then the step may be asked for again."""
        refused = self.generation.refused
        with self.generation.lock:
            while refused and time.monotonic() - refused[0][0] > REMEMBERED_SECONDS:
                self._delete(refused.popleft()[1])

    def forget(self) -> None:
        """Forgets the records of all ranks, so that the step may be asked for again."""
        self._delete(self._keys)

    def _delete(self, keys: list[str]) -> None:
        for key in keys:
            self.generation.store.delete_key(key)
