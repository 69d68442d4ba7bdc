"""Reads a user's pool, and sets apart by what it is judged."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from selector_server.encoding.decoder import Decoder
from selector_server.encoding.preprocess import Preprocessor, load_tokenizer
from selector_server.errors import SetupError
from selector_tools.datasets.pairs import Pairs
from selector_tools.export.torch_model import TorchModel
from selector_tools.pools import reading
from selector_tools.pools.exclusions import Exclusions
from selector_tools.pools.opening import open_pool
from selector_tools.reference.validation import LEAST, held_out
from selector_tools.study.streams import RUN

# What is held out for the validation, for the test, and for a reference that has no pairs of its own: the share, and
# the most. More pairs would judge better, but a learner is judged often.
SHARE, MOST_VALIDATION, MOST_TEST = 0.1, 512, 1024
REFERENCE_SHARE = 0.1


@dataclass(frozen=True)
class OwnPool:
    """What is trained on, `train`, in the pool's order, and what judges on the way and at the end. `aside` are the
    pairs that a reference may be trained on; there are none if nothing was asked for."""

    train: Pairs
    validation: Pairs
    test: Pairs
    aside: Pairs | None


Reader = Callable[[str, str], Pairs]  # of a place and of the flag that names it


def reader(model: TorchModel, exclusions: Callable[[str], Exclusions], most_bytes: int, threads: int) -> Reader:
    """Returns what reads all usable pairs of a place as the model takes them. `exclusions` gives what counts the others
    of a place. Raises SetupError if the pairs take more than `most_bytes`."""

    def read(place: str, flag: str) -> Pairs:
        try:
            return whole(place)
        except SetupError as error:
            raise SetupError(error.field.replace("--pool", flag, 1), error.value, error.limit) from error

    def whole(place: str) -> Pairs:
        with Decoder(threads) as decoder:
            tokenizer = load_tokenizer(model.tokenizer)
            preprocessor = Preprocessor(model.image, model.text, tokenizer, "", reading.LIMITS, decoder)
            pool = open_pool(place)
            _, pixels, tokens = reading.read_pool(preprocessor, pool, place, exclusions(place), most_bytes)
        return Pairs(pixels, tokens)

    return read


def split(pairs: Pairs, place: str, super_batch: int, seed: int, *, aside: bool) -> OwnPool:
    """Draws by each picture what it is for, so that a picture with several captions, or one that is there twice, never
    both trains and judges. Raises SetupError if too few are left of a part."""
    keys = [blake2b(image.tobytes(), digest_size=16).digest() for image in pairs.pixels]
    count = len(keys)

    def drawn(share: float, number: int, most: int, name: str, least: int) -> NDArray[np.bool_]:
        rows = held_out(keys, share, 4 * seed + number, most) & ~taken
        if (found := int(rows.sum())) < least:
            limit = f"too small: {share:.0%} of its {count:,} usable pairs are {found} for the {name}"
            raise SetupError("--pool", place, f"{limit}; at least {least} are needed")
        taken[rows] = True
        return rows

    taken = np.zeros(count, np.bool_)
    validation = drawn(SHARE, 1, MOST_VALIDATION, "validation", LEAST)
    test = drawn(SHARE, 2, MOST_TEST, "test", LEAST)
    own = drawn(REFERENCE_SHARE, 3, count, "reference", LEAST) if aside else None
    left = ~taken
    least = super_batch + RUN - 1
    if (found := int(left.sum())) < least:
        limit = f"too small: {found:,} of its {count:,} usable pairs are left to train on; must be at least {least:,}"
        raise SetupError("--pool", place, f"{limit} for super-batches of {super_batch:,} (--batch, --filter-ratio)")
    return OwnPool(at(pairs, left), at(pairs, validation), at(pairs, test), None if own is None else at(pairs, own))


def at(pairs: Pairs, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Pairs:
    """Returns the pairs of these rows."""
    return Pairs(pairs.pixels[rows], pairs.tokens[rows])


def fewer(pairs: Pairs, most: int, seed: int) -> Pairs:
    """Returns `most` pairs or a few more, in their order: runs of neighbours, drawn at random; all if there are not so
    many."""
    count = -(-most // RUN)
    whole = len(pairs.pixels) // RUN
    if count >= whole:
        return pairs
    starts = np.sort(np.random.default_rng([seed, 7]).permutation(whole)[:count]) * RUN
    return at(pairs, (starts[:, None] + np.arange(RUN)).ravel())
