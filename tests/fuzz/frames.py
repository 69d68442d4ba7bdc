"""Several byte strings in one input: each behind its length. Every input can be taken apart."""

from collections.abc import Iterable, Sequence
from random import Random

from fuzz.target import Mutator

_LENGTH = 4


def joined(parts: Iterable[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(_LENGTH, "little") + part for part in parts)


def split(data: bytes, at_least: int = 0) -> list[bytes]:
    """The parts; a length that leads past the end takes what there is. Empty ones are added up to `at_least`."""
    parts, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + _LENGTH], "little")
        parts.append(data[at + _LENGTH : at + _LENGTH + size])
        at += _LENGTH + size
    return parts + [b""] * (at_least - len(parts))


def each(mutators: Sequence[Mutator], move: float = 0.1) -> Mutator:
    """Changes one part by its own mutator, the last of which is for all that follow; with probability `move` whole
    parts come, go or change places."""

    def mutate(random: Random, data: bytes, other: bytes) -> bytes:
        parts, others = split(data, 1), split(other, 1)
        at = random.randrange(len(parts))
        if random.random() < move:
            match random.randrange(4):
                case 0:
                    del parts[at]
                case 1:
                    parts.insert(at, random.choice(others))
                case 2:
                    parts[at] = others[at % len(others)]
                case _:
                    to = random.randrange(len(parts))
                    parts[at], parts[to] = parts[to], parts[at]
        else:
            mutator = mutators[min(at, len(mutators) - 1)]
            parts[at] = mutator(random, parts[at], others[at % len(others)])
        return joined(parts)

    return mutate
