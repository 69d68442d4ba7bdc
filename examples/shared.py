"""What all examples share: where the sidecar is, and what they print at the end. This imports no framework."""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from selector_client import SelectingLoader, Selector, WeightPublisher


def arguments(description: str | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--sidecar", default="localhost:50051", help="address of `selector serve`")
    parser.add_argument("--redis", default="redis://localhost:6379", help="the URL that the sidecar was given")
    parser.add_argument("--run", default="example", help="the name that the sidecar was given")
    parser.add_argument("--steps", type=int, default=60)
    return parser.parse_args()


def report(
    selector: Selector,
    loader: SelectingLoader,
    publisher: WeightPublisher,
    mislabelled: Sequence[np.ndarray[Any, Any]] = (),
) -> None:
    """Prints how selection went; `mislabelled` are the picks' marks, bool [b] for each step."""
    statistics = selector.statistics
    print(
        f"steps: {statistics.requests}, fallbacks: {statistics.fallbacks.total()}, waited: {loader.wait_seconds:.1f} s"
    )
    print(f"weights: {publisher.published} versions published, {len(statistics.weights_versions)} scored with")
    if mislabelled:
        print(f"mislabelled: {np.concatenate(mislabelled).mean():.0%} of the picks, 50% of the pool")
