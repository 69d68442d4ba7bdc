"""How many samples are encoded at once: as many as memory holds, up to a limit."""

# Samples encoded at once on a device unless somebody says it. More gains nothing on a CPU, and delays what runs beside.
SIZES = {"cpu": 32, "cuda": 1024}
# Runs that must fit before a larger micro-batch is tried again.
PATIENCE = 64


class MicroBatch:
    """`size` begins at `limit`, is halved when memory runs out, and creeps back by an eighth of the limit."""

    def __init__(self, limit: int) -> None:
        self.size = self._limit = limit
        self._fits = 0

    def halve(self, tried: int) -> None:
        """`tried` samples (more than 1) did not fit."""
        self.size, self._fits = tried // 2, 0

    def fitted(self) -> None:
        """One more run fitted."""
        if self.size == self._limit:
            return
        self._fits += 1
        if self._fits >= PATIENCE:
            self.size, self._fits = min(self._limit, self.size + max(1, self._limit // 8)), 0
