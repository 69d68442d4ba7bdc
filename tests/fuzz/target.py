"""What is fuzzed: a function of bytes that may raise only what its decoder documents."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random

# (random, input, another input of the corpus) to a new input.
Mutator = Callable[[Random, bytes, bytes], bytes]
# Decodes one input; returns a word for how it was accepted.
Decode = Callable[[bytes], str]


@dataclass(frozen=True)
class Target:
    """`prepare` makes what the decoder needs, in an empty folder in memory, and yields the function. `refusals` are
    the documented errors. An input that takes more CPU `seconds` or lifts the peak of resident memory by more than
    `mebibytes` is a finding."""

    name: str
    decodes: str  # for the report: what is decoded, in a few words
    prepare: Callable[[Path], AbstractContextManager[Decode]]
    seeds: Callable[[], Sequence[bytes]]
    mutate: Mutator
    refusals: tuple[type[BaseException], ...]
    seconds: float = 1.0
    mebibytes: int = 48
    share: float = 1.0  # of the inputs asked for: slow decoders get fewer
