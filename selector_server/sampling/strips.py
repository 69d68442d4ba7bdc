"""Strips of logits between candidates and picks: where the sampler spends its time, and what bounds its memory."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from selector_server.sampling.embedded import Embedded

# Bytes of logits held at once. On a CPU they stay in the cache between the product and the sum; a GPU wants them large.
CPU_TILE_BYTES, CPU_TILE_ROWS = 1 << 20, 512
GPU_TILE_BYTES, GPU_TILE_ROWS = 256 << 20, 16384


def softplus(logits: Tensor) -> Tensor:
    """log(1 + e^x) of each element, by a kernel that treats them all alike: on a CPU, torch's softplus differs in the
    last bit where a vector does not fit, so that a candidate's score would depend on where it lies in memory."""
    return -logsigmoid(-logits)


def softplus_strips(candidates: Embedded, picked: Embedded, tile_bytes: int | None = None) -> Tensor:
    """Sum over k of softplus(logit_ki) + softplus(logit_ik), float64 [B], for candidates i and picked k.

    Two products of [B, D] by [D, c], and 2 B c softplus. `tile_bytes` bounds the memory beyond inputs and result.
    """
    total = torch.zeros(len(candidates), dtype=torch.float64, device=candidates.image.device)
    sums = candidates.image.new_empty(len(candidates))
    for side, others in ((candidates.text, picked.image), (candidates.image, picked.text)):
        for rows, products in tiles(side, others * -picked.scale, tile_bytes):
            products.sub_(picked.bias)
            # -softplus(logit), in place: a second tile would push the first out of the cache.
            torch.sum(torch.ops.aten.log_sigmoid.out(products, out=products), dim=1, out=sums[rows])
        total -= sums
    return total


def tiles(left: Tensor, right: Tensor, tile_bytes: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, left[rows] @ right.T), [rows, c], in one buffer that the next tile overwrites.

    All tiles have one shape, which depends on `right` and the bound alone: the last one overlaps the one before or is
    filled up with zeros. So a candidate's products come out bit-equal however candidates are divided among shards.
    """
    left, right = _aligned(left), _aligned(right)
    on_cpu = left.device.type == "cpu"
    bound = tile_bytes or (CPU_TILE_BYTES if on_cpu else GPU_TILE_BYTES)
    height = max(16, min(CPU_TILE_ROWS if on_cpu else GPU_TILE_ROWS, bound // (len(right) * left.element_size())))
    if len(left) < height:
        padded = left.new_zeros((height, left.shape[1]))
        padded[: len(left)] = left
        yield slice(0, len(left)), (padded @ right.T)[: len(left)]
        return
    buffer = torch.empty((height, len(right)), dtype=left.dtype, device=left.device)
    for end in range(height, len(left) + height, height):
        stop = min(end, len(left))
        torch.mm(left[stop - height : stop], right.T, out=buffer)
        yield slice(end - height, stop), buffer[end - stop :]


def _aligned(rows: Tensor) -> Tensor:
    """The same rows, each from a multiple of 64 bytes on: copied and filled up with zeros unless they lie so already.

    Elsewhere the last bits of a product depend on where its row lies in memory.
    """
    spare = -rows.shape[1] % (64 // rows.element_size())
    if spare == 0 and rows.is_contiguous() and rows.data_ptr() % 64 == 0:
        return rows
    copy = rows.new_zeros((len(rows), rows.shape[1] + spare))
    copy[:, : rows.shape[1]] = rows
    return copy
