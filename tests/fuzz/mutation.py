"""Mutators of plain bytes and of text, and how mutators are put together."""

from collections.abc import Callable, Sequence
from random import Random

from fuzz.target import Mutator

# Numbers at which bound checks break: powers of two and their neighbours.
EDGES = sorted(
    {
        sign * (1 << bits) + by
        for bits in (0, 7, 8, 15, 16, 31, 32, 53, 62, 63, 64)
        for by in (-1, 0, 1)
        for sign in (1, -1)
    }
)
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, -1e300, float("inf"), float("-inf"), float("nan")]
TEXTS = ["", "\0", "/", "..", "a" * 300, "é", "\U0001f600", "\u202e", "\ud7ff", "%s%n", "0", "-1", "NaN", "\r\n"]


def number(random: Random, low: int, high: int, now: int = 0) -> int:
    """An integer in [low, high]: an edge, a neighbour of `now`, a small one or any."""
    match random.randrange(4):
        case 0:
            value = random.choice(EDGES)
        case 1:
            value = now + random.choice((-8, -1, 1, 8, now, -now))
        case 2:
            value = random.randrange(17)
        case _:
            value = random.randint(low, high)
    return min(max(value, low), high)


def raw(*words: bytes) -> Mutator:
    """Bits, bytes and blocks, splices, numbers of every width, and the words of the format."""

    def mutate(random: Random, data: bytes, other: bytes) -> bytes:
        buffer = bytearray(data)
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            _once(random, buffer, other, words)
        return bytes(buffer)

    return mutate


def _once(random: Random, buffer: bytearray, other: bytes, words: Sequence[bytes]) -> None:
    at = random.randrange(len(buffer) + 1)
    length = min(random.choice((1, 2, 4, 8, 16, 64, 1 << 12)), len(buffer) - at)
    match random.randrange(10):
        case 0:
            if at < len(buffer):
                buffer[at] ^= 1 << random.randrange(8)
        case 1:
            if at < len(buffer):
                buffer[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        case 2:
            del buffer[at:]
        case 3:
            del buffer[at : at + length]
        case 4:
            buffer[at:at] = buffer[at : at + length] * random.choice((1, 1, 2, 64))
        case 5:
            buffer[at:at] = random.randbytes(random.choice((1, 2, 4, 32)))
        case 6:
            start = random.randrange(len(other) + 1)
            buffer[at:] = other[start:]
        case 7:
            width, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
            value = number(random, 0, (1 << 8 * width) - 1)
            buffer[at : at + width] = value.to_bytes(width, order)
        case 8:
            buffer[at : at + random.choice((0, 1, 2))] = varint(number(random, 0, (1 << 70) - 1))
        case _:
            if words:
                buffer[at : at + random.choice((0, 0, length))] = random.choice(words)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def either(*mutators: Mutator) -> Mutator:
    """One of them; one given twice is taken twice as often."""
    return lambda random, data, other: random.choice(mutators)(random, data, other)


def repaired(mutator: Mutator, repair: Callable[[bytes], bytes], often: float = 0.7) -> Mutator:
    """Often makes digests and lengths right again, so that what lies behind their checks is reached too."""

    def mutate(random: Random, data: bytes, other: bytes) -> bytes:
        changed = mutator(random, data, other)
        return repair(changed) if random.random() < often else changed

    return mutate
