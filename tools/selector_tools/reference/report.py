"""`selector reference report` tells whether a reference knows true captions from shuffled ones, and which words it does
not know."""

import argparse
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from selector_tools.mistakes import any_mistake, exit_status
from selector_tools.reference import flags as shared

if TYPE_CHECKING:
    from selector_tools.embedding import Embedder
    from selector_tools.pools.pool import Batch

COMMAND = "selector reference report"


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "report",
        help="how well a reference tells true captions from shuffled ones",
        description="Gives every image its own caption and another's, and compares the reference's losses: over the "
        "pool, and among the pairs of each word. Writes report.json, report.md and report.svg.",
    )
    parser.set_defaults(handler=run, extra="server,reference")
    shared.add_encoding(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the report's folder; must not exist yet")
    add("--samples", type=int, default=100_000, metavar="N", help="look at the first N pairs (default %(default)s)")
    add("--min-count", type=int, default=20, metavar="N", help="captions that a word must be in (default %(default)s)")
    add("--shuffle-seed", type=int, default=0, metavar="N", help="of the wrong captions (default %(default)s)")


def run(flags: argparse.Namespace) -> int:
    checks = [
        *shared.encoding_checks(flags),
        shared.out_check(flags),
        (flags.samples < 2, "--samples", flags.samples, "must be at least 2"),
        (flags.min_count < 2, "--min-count", flags.min_count, "must be at least 2"),
        (flags.shuffle_seed < 0, "--shuffle-seed", flags.shuffle_seed, "must be 0 or more"),
    ]
    if any_mistake(COMMAND, checks):
        return 2
    return exit_status(COMMAND, lambda: _report(flags))


def _report(flags: argparse.Namespace) -> None:
    import torch  # noqa: PLC0415 - heavy, as are the others

    from selector_server.errors import SetupError  # noqa: PLC0415
    from selector_server.sampling import Embedded  # noqa: PLC0415
    from selector_tools.embedding import embedder  # noqa: PLC0415
    from selector_tools.pools.opening import open_pool  # noqa: PLC0415
    from selector_tools.reference import pages  # noqa: PLC0415
    from selector_tools.reference.separation import separate  # noqa: PLC0415

    pool, began, parts = open_pool(flags.pool), perf_counter(), []
    texts: list[bytes] = []
    captions: list[str] = []
    told, excluded = True, shared.exclusions(flags)
    with embedder(flags.reference, flags.device, flags.threads, exclusions=excluded) as reference:
        for seen in reference.run(pool, flags.pool, flags.batch, most=flags.samples):
            parts.append((seen.embedded.image, seen.embedded.text))
            texts += (part if isinstance(part, bytes) else part.tobytes() for part in seen.batch.texts)
            words = _captions(reference, seen.batch)
            told = told and words is not None
            captions += words or []
        manifest, fingerprint = reference.model.bundle.manifest, reference.model.bundle.fingerprint
        weights = reference.model.constant_weights()
    image, text = (torch.cat(part)[: flags.samples] for part in zip(*parts, strict=True))
    separation = separate(
        Embedded(image, text, weights.scale, weights.bias), texts[: flags.samples], flags.shuffle_seed
    )
    if not separation.differs.any():
        raise SetupError("--pool", flags.pool, "holds one and the same caption; nothing can be shuffled")
    found = pages.Report(
        name=manifest.name,
        fingerprint=fingerprint,
        pool=flags.pool,
        seconds=perf_counter() - began,
        separation=separation,
        words=separation.words(captions[: flags.samples], flags.min_count) if told else None,
        min_count=flags.min_count,
        exclusions=excluded,
    )
    pages.write(found, flags.out)
    shared.tell_excluded(COMMAND, excluded)
    if flags.json:
        print((flags.out / "report.json").read_text("utf-8"), end="")
        return
    print(pages.headline(found))
    print(f"report: {flags.out / 'report.md'}")


def _captions(reference: "Embedder", batch: "Batch") -> list[str] | None:
    """Returns captions for people: the pool's, or what the tokenizer makes of the tokens; None without either."""
    if batch.captions is not None:
        return batch.captions
    tokenizer, pad = reference.preprocessor.tokenizer, reference.preprocessor.text.pad_token
    if tokenizer is None:
        return None
    rows = [[token for token in tokens.tolist() if token != pad] for tokens in batch.texts]  # type: ignore[union-attr]
    return tokenizer.decode_batch(rows)
