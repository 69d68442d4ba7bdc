"""A mutator of JSON: changes a value somewhere in the tree, and leaves the rest valid."""

import copy
import json
from random import Random
from typing import Any

from fuzz.mutation import EDGES, FLOATS, TEXTS, number, raw
from fuzz.target import Mutator


def tree(*words: Any, syntax: float = 0.1) -> Mutator:
    """`words` are values worth trying; with probability `syntax`, or if it is no JSON, bytes are changed instead."""
    by_bytes = raw(
        b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"1e999", b"NaN", b"\\ud800", b"[" * 5000, b'{"a":' * 5000
    )

    def mutate(random: Random, data: bytes, other: bytes) -> bytes:
        try:
            if random.random() < syntax:
                raise ValueError
            root = json.loads(data)
            donor = json.loads(other)
        except (ValueError, RecursionError):
            return by_bytes(random, data, other)
        for _ in range(random.choice((1, 1, 2, 3))):
            root = _changed(random, root, donor, words)
        return dumped(root)

    return mutate


def dumped(root: Any) -> bytes:
    try:
        return json.dumps(root).encode()
    except RecursionError:
        return b"{}"


def _changed(random: Random, root: Any, donor: Any, words: tuple[Any, ...]) -> Any:
    node, places = root, []
    while isinstance(node, dict | list) and node:
        key = random.choice(list(node)) if isinstance(node, dict) else random.randrange(len(node))
        places.append((node, key))
        node = node[key]
        if random.random() < 0.15:
            break
    if not places:
        return _value(random, root, donor, words)
    parent, key = places[-1]
    match random.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[random.choice([*TEXTS, str(key).upper(), f"{key}{random.randrange(3)}"])] = copy.deepcopy(node)
        case 1:
            parent.insert(key, copy.deepcopy(node))
        case 2 if isinstance(parent, list):
            parent += copy.deepcopy(parent) * random.choice((1, 2, 20)) if len(parent) < 1000 else []
        case _:
            parent[key] = _value(random, node, donor, words)
    return root


def _value(random: Random, now: Any, donor: Any, words: tuple[Any, ...]) -> Any:
    match random.randrange(9):
        case 0:
            return random.choice((None, True, False, {}, [], "", 0))
        case 1:
            return random.choice(EDGES)
        case 2:
            return random.choice(FLOATS)
        case 3:
            return random.choice(TEXTS)
        case 4:
            return [now]
        case 5:
            return {"": now}
        case 6 if words:
            return copy.deepcopy(random.choice(words))
        case 7:
            return _some(random, donor)
    if isinstance(now, bool) or not isinstance(now, int | float | str):
        return 10 ** random.randrange(400)
    if isinstance(now, str):
        return raw()(random, now.encode(errors="replace"), b"").decode(errors=random.choice(("replace", "ignore")))
    if isinstance(now, float):
        return now * random.choice((-1, 0, 2, 1e10, 1e300))
    return number(random, -(1 << 64), 1 << 64, now)


def _some(random: Random, node: Any) -> Any:
    while isinstance(node, dict | list) and node and random.random() < 0.8:
        node = node[random.choice(list(node))] if isinstance(node, dict) else random.choice(node)
    return json.loads(dumped(node))
