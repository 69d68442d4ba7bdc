"""`selector bench` has these verbs; their modules import what is heavy only when they run."""

from typing import Any

from selector_tools.bench import (
    cache,
    chunks,
    faults,
    inspect,
    load,
    loader,
    pool,
    prefilter,
    resolution,
    sampler,
    serve,
    sharded,
    shuffling,
    training,
    transport,
    weights,
)


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("bench", help="measure", description="Measures on this machine.")
    leaves = parser.add_subparsers(dest="bench", required=True, metavar="VERB")
    for verb in (
        sampler,
        chunks,
        resolution,
        sharded,
        serve,
        cache,
        prefilter,
        weights,
        transport,
        loader,
        load,
        faults,
        inspect,
        pool,
        shuffling,
        training,
    ):
        verb.add_parser(leaves)
