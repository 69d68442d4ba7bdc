# ruff: noqa: PLC0415, T201
"""Measures the fused kernel at the paper's size on a CUDA device: time, rate, memory and accuracy. It prints one JSON
object.

    python benchmarks/kernel.py [--candidates 163840] [--picks 2048] [--width 768] [--rounds 15] [--repeats 5]

Every repeat runs all rounds, each with other picks, as a draw does; a round reads 1 GB of embeddings, twenty times
the L2. `products` times the same matrix products alone (cuBLAS, bfloat16, results written to one reused buffer).
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from selector_server.sampling.losses import kernel
from selector_server.sampling.losses.kernel import StripModel, strips

# So many rows' strips are checked against float64.
CHECKED = 256
# A tile of cuBLAS's products has so many rows; its result is 128 MiB at 2,048 picks.
TILE_ROWS = 32_768
# The scale, bias and weight of learner and reference.
LAWS = ((10.0, -10.0, 1.0), (25.0, -7.5, -1.0))

Pair = tuple[Tensor, Tensor]


def embeddings(count: int, width: int, seed: int, dtype: torch.dtype) -> Pair:
    """Returns image and text, [count, width] with rows of length one; those of a pair are alike."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    image = torch.randn(count, width, generator=generator, device="cuda")
    text = torch.randn(count, width, generator=generator, device="cuda") + image
    return tuple(torch.nn.functional.normalize(z, dim=1).to(dtype) for z in (image, text))  # type: ignore[return-value]


def milliseconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Returns the device time of each of `repeats` runs, after two that do not count."""
    times = []
    for _ in range(2 + repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call,unused-ignore]
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times[2:]


def summary(times: list[float], flop: float) -> dict[str, float]:
    median = statistics.median(times)
    return {"median_ms": median, "min_ms": min(times), "max_ms": max(times), "tflops": flop / median / 1e9}


def exact(models: list[StripModel], rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the strips of these rows and the sums of their absolute losses, both float64 [rows]."""
    zero = torch.zeros((), dtype=torch.float64, device=rows.device)
    signed = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    absolute = signed.clone()
    for model in models:
        for candidates, picks in ((model.text, model.picked_image), (model.image, model.picked_text)):
            logits = candidates[rows].double() @ picks.double().T * model.scale + model.bias
            losses = torch.logaddexp(logits, zero).sum(dim=1)
            signed += model.weight * losses
            absolute += abs(model.weight) * losses
    return signed, absolute


def measure(arguments: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    count, size, width = arguments.candidates, arguments.picks, arguments.width
    pairs = [embeddings(count, width, seed, dtype) for seed in range(len(LAWS))]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).cuda()
    chunks = [order.roll(-size * r)[:size] for r in range(arguments.rounds)]

    def models(chunk: Tensor) -> list[StripModel]:
        return [
            StripModel(image, text, image[chunk], text[chunk], *law)
            for (image, text), law in zip(pairs, LAWS, strict=True)
        ]

    rounds = [models(chunk) for chunk in chunks]
    total = torch.zeros(count, dtype=torch.float64, device="cuda")
    buffer = torch.empty(min(TILE_ROWS, count), size, dtype=dtype, device="cuda")

    def fused() -> None:
        for round_ in rounds:
            strips(round_, total)

    def products() -> None:
        for round_ in rounds:
            for m in round_:
                for candidates, picks in ((m.text, m.picked_image), (m.image, m.picked_text)):
                    for rows in torch.split(candidates, TILE_ROWS):
                        torch.mm(rows, picks.T, out=buffer[: len(rows)])

    first = strips(rounds[0])  # this compiles and tunes
    flop = 2.0 * count * size * width * 2 * len(LAWS) * len(rounds)
    times = {"fused": milliseconds(fused, arguments.repeats), "products": milliseconds(products, arguments.repeats)}
    again = milliseconds(fused, arguments.repeats)  # how far this is from the first time shows the noise

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fused()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before

    rows = torch.linspace(0, count - 1, min(CHECKED, count), device="cuda").long()
    want, absolute = exact(rounds[0], rows)
    error = (first[rows] - want).abs()
    return {
        "fused": summary(times["fused"], flop),
        "fused_again": summary(again, flop),
        "products": summary(times["products"], flop),
        "extra_bytes": extra,
        "max_error_nats": float(error.max()),
        "max_error_over_losses": float((error / absolute).max()),
        "spread_of_strips_nats": float(want.std()),
        "same_bits_again": bool(torch.equal(first, strips(rounds[0]))),
        **tuning(rounds[0]),
    }


def tuning(models: list[StripModel]) -> dict[str, Any]:
    """Returns each tile's time for one round, and how far its strips are from the chosen tile's."""
    from selector_server.sampling.losses.kernel_triton import TILES, side

    reference = strips(models)
    chosen = str(side.best_config)
    tiles: dict[str, Any] = {}
    configs = side.configs
    for tile in TILES:
        side.configs = [tile]
        try:
            times = milliseconds(lambda: strips(models), 5)
            apart = float((strips(models) - reference).abs().max())
            tiles[str(tile)] = {"round_ms": statistics.median(times), "apart_nats": apart}
        except Exception as error:  # a tile that does not fit is a finding, not a failure
            tiles[str(tile)] = {"error": repr(error)[:200]}
        finally:
            side.configs = configs
    return {"tile": chosen, "tiles": tiles}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("candidates", 163_840), ("picks", 2_048), ("width", 768), ("rounds", 15), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--float32", action="store_true", help="measure float32 (TF32) too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or not kernel.available(torch.device("cuda")):
        print("no CUDA device of capability 9.0 or newer with Triton: nothing measured", file=sys.stderr)
        return 2
    import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]

    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        **vars(arguments),
        "bfloat16": measure(arguments, torch.bfloat16),
    }
    if arguments.float32:
        torch.backends.cuda.matmul.allow_tf32 = True
        result["float32"] = measure(arguments, torch.float32)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
