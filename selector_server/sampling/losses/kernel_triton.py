# mypy: ignore-errors
"""Device code of `kernel`, in Triton's language. Import it only where Triton is installed.

softplus(x) = max(x, 0) + log1p(exp(-|x|)), in base 2: y = x * log2(e), so that a pair costs one multiply-add, one
maximum and add, one exp2 (16 a clock on an SM: the limit of this part) and two operations to join its term. Terms
t = exp(-|x|) are joined as (1 + t)(1 + u) - 1 = t + u + tu: all of it positive, so a sum of terms of 4.5e-5 (x = -10)
keeps float32's relative accuracy, and a group of 32 needs one logarithm. 2^32 - 1, its largest value, is finite.
"""

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

__all__ = ["INTERPRETED", "TILES", "TensorDescriptor", "side"]

# The losses of so many picks are summed in float32, in four interleaved groups, before float64 takes over. The number
# is the same for every tile, so that the tile that tuning chooses moves no sum by more than float64's rounding.
SPAN = tl.constexpr(128)
LN2 = tl.constexpr(0.6931471805599453)


def _set_block_shapes(arguments):
    arguments["candidates"].block_shape = [arguments["rows"], arguments["width"]]
    arguments["picks"].block_shape = [arguments["columns"], arguments["width"]]


def _tile(rows, columns, warps, stages):
    sizes = {"rows": rows, "columns": columns}
    return triton.Config(sizes, num_warps=warps, num_stages=stages, pre_hook=_set_block_shapes)


# A Hopper SM has 65,536 registers and 227 KiB of shared memory. A tile's float32 products take 128 registers a thread
# in each of these (168 with the rest, as compiled for sm_90); a stage takes (rows + columns) * 128 bytes.
TILES = (
    _tile(128, 256, warps=8, stages=3),  # 144 KiB, one block an SM
    _tile(128, 256, warps=8, stages=4),  # 192 KiB, one block an SM
    _tile(256, 128, warps=8, stages=4),  # 192 KiB, one block an SM
    _tile(128, 128, warps=4, stages=3),  # 96 KiB, two blocks an SM: one's softplus runs beside the other's products
)
INTERPRETED = triton.knobs.runtime.interpret
INTERPRETER_TILES = (_tile(4, 128, warps=4, stages=1),)


@triton.jit
def _join(losses, terms, more_losses, more_terms):
    return losses + more_losses, more_terms + terms * (1.0 + more_terms)


@triton.jit
def _log1p(q):
    """log(1 + q) for q in [0, 2^32), to a relative 5e-7. Below 1/2 it is 2 artanh(q / (2 + q)), cut at 1e-8."""
    s = q / (2.0 + q)
    z = s * s
    small = 2.0 * s * (1.0 + z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9)))))
    return tl.where(q < 0.5, small, tl.log(1.0 + q))


@triton.autotune(configs=list(INTERPRETER_TILES if INTERPRETED else TILES), key=["depth", "width"])
@triton.jit
def side(
    candidates,
    picks,
    sums,
    candidate_count,
    pick_count,
    depth,
    scale,
    bias,
    rows: tl.constexpr,
    columns: tl.constexpr,
    width: tl.constexpr,
    ragged: tl.constexpr,
    widen: tl.constexpr,
):
    """Sets sums[i], float64, to the sum over k of softplus((scale * <candidates_i, picks_k> + bias) * ln 2).

    Program p owns rows p * rows and on. `flatten` makes the loops over picks and depth one, so that the loads of the
    next picks run during the softplus of these; loads beyond an edge give zeros.
    """
    first = tl.program_id(0) * rows
    total = tl.zeros([rows, 4], tl.float64)
    for k in tl.range(0, pick_count, columns, flatten=True):
        dots = tl.zeros([rows, columns], tl.float32)
        for d in tl.range(0, depth, width):
            a, b = candidates.load([first, d]), picks.load([k, d])
            if widen:  # Triton's interpreter would multiply the bits of bfloat16
                a, b = a.to(tl.float32), b.to(tl.float32)
            dots = tl.dot(a, b.T, dots)
        y = dots * scale + bias
        if ragged:  # columns that are no pick have loss 0
            y = tl.where((k + tl.arange(0, columns))[None, :] < pick_count, y, float("-inf"))
        # A thread of a wgmma product holds, of each row, two columns of every eight: axes 4 and 2 are its own.
        y = tl.reshape(y, [rows, columns // SPAN, SPAN // 8, 4, 2])
        losses, terms = tl.reduce((tl.maximum(y, 0.0), tl.exp2(tl.abs(y) * -1.0)), 4, _join)
        losses, terms = tl.reduce((losses, terms), 2, _join)
        total += tl.sum((losses * LN2 + _log1p(terms)).to(tl.float64), 1)
    i = first + tl.arange(0, rows)
    tl.store(sums + i, tl.sum(total, 1), mask=i < candidate_count)
