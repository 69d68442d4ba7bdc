"""Strips of logits between candidates and picks: where the sampler spends its time, and what bounds its memory."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from selector_server.sampling.embeddings import Embedded
from selector_server.sampling.threads import spread

# So many bytes of logits are held at once, in at most so many rows. On a CPU they stay in the cache between the product
# and the sum; a GPU wants them large.
CPU_TILE_BYTES, CPU_TILE_ROWS = 1 << 20, 512
GPU_TILE_BYTES, GPU_TILE_ROWS = 256 << 20, 16384


def softplus(logits: Tensor) -> Tensor:
    """log(1 + e^x) of each element, by an operator that treats them all alike.

    On a CPU, torch's softplus differs in the last bit where a vector register does not fit, so that a candidate's score
    would depend on where it lies in memory.
    """
    return -logsigmoid(-logits)


class Side:
    """One side of the candidates, [B, D], images or texts, ready for products with picks, round after round.

    Its rows are aligned, and where there are fewer of them than a tile has rows, zeros fill it up.
    """

    def __init__(self, rows: Tensor) -> None:
        self.count, on_cpu = len(rows), rows.device.type == "cpu"
        self.tile_bytes, self.tile_rows = (CPU_TILE_BYTES, CPU_TILE_ROWS) if on_cpu else (GPU_TILE_BYTES, GPU_TILE_ROWS)
        self.rows = _aligned(rows, self.tile_rows)


class Sides:
    """Both sides of the candidates as each of the M models sees them, for sums of softplus."""

    def __init__(self, models: Sequence[Embedded]) -> None:
        self._sides = [Side(rows) for model in models for rows in (model.text, model.image)]
        self._biases = models[0].image.new_tensor([model.bias for model in models]).repeat_interleave(2)

    def softplus_sums(self, picked: Sequence[Embedded], tile_bytes: int | None = None) -> Tensor:
        """For each model and candidate i, the sum over picks k of softplus(logit_ki) + softplus(logit_ik), float64
        [M, B]. `picked` has the c picks as each model sees them.

        It takes two products of [B, D] by [D, c] and 2 B c softplus for each model. `tile_bytes` bounds the memory
        beyond inputs and result.
        """
        others = [rows * -model.scale for model in picked for rows in (model.image, model.text)]
        sums = others[0].new_empty((len(others), self._sides[0].count))

        def add_up(which: slice, rows: slice, products: Tensor) -> None:
            products.sub_(self._biases[which, None, None])
            # This is -softplus(logit), in place: a second tile would push the first out of the cache.
            torch.sum(torch.ops.aten.log_sigmoid.out(products, out=products), dim=2, out=sums[which, rows])

        for_each_tile(self._sides, others, tile_bytes, add_up)
        return -sums.double().view(len(picked), 2, -1).sum(dim=1)


def for_each_tile(
    lefts: Sequence[Side],
    rights: Sequence[Tensor],
    tile_bytes: int | None,
    work: Callable[[slice, slice, Tensor], object],
) -> None:
    """Multiplies each of the sides, [B, D], with its picks, [c, D], tile by tile, in the sampler's threads.

    It calls work(which, rows, products), where products[j] = lefts[which][j][rows] @ rights[which][j].T, [n, rows, c],
    lie in a buffer that the thread's next tile overwrites. A tile takes as many sides at once as fit into it, for each
    step costs some microseconds however small it is. `tile_bytes` bounds the buffer of a thread; None suits the device.

    All products have one shape, which depends on the number of picks and the bound alone: the last one overlaps the one
    before or is filled up with zeros. So a candidate's products come out bit-equal however candidates are divided among
    shards and threads.
    """
    rights, first = [_aligned(right) for right in rights], lefts[0]
    bound = tile_bytes or first.tile_bytes
    row_bytes = len(rights[0]) * rights[0].element_size()
    height = max(16, min(first.tile_rows, bound // row_bytes))
    together = max(1, min(len(lefts), bound // (height * row_bytes)))

    def multiplier() -> Callable[[tuple[int, int]], None]:
        buffer = rights[0].new_empty((together, height, len(rights[0])))

        def multiply(piece: tuple[int, int]) -> None:
            start, end = piece
            some, stop = slice(start, min(start + together, len(lefts))), max(height, min(end, first.count))
            for left, right, room in zip(lefts[some], rights[some], buffer, strict=False):
                torch.mm(left.rows[stop - height : stop], right.T, out=room)
            rows = slice(end - height, min(end, first.count))
            work(some, rows, buffer[: some.stop - start, rows.start - stop + height : rows.stop - stop + height])

        return multiply

    ends = range(height, first.count + height, height)
    spread(multiplier, [(start, end) for start in range(0, len(lefts), together) for end in ends], rights[0].device)


def _aligned(rows: Tensor, least: int = 0) -> Tensor:
    """The same rows, each of which begins at a multiple of 64 bytes, and at least so many of them. They are copied and
    filled up with zeros unless they lie so already.

    Elsewhere the last bits of a product would depend on where its row lies in memory.
    """
    spare = -rows.shape[1] % (64 // rows.element_size())
    if spare == 0 and len(rows) >= least and rows.is_contiguous() and rows.data_ptr() % 64 == 0:
        return rows
    copy = rows.new_zeros((max(least, len(rows)), rows.shape[1] + spare))
    copy[: len(rows), : rows.shape[1]] = rows
    return copy
