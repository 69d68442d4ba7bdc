"""A mutator of protobuf messages by their descriptor: every field can be set, cleared, repeated and driven to its
edges."""

import struct
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as F
from google.protobuf.message import DecodeError, Message

from fuzz.mutation import FLOATS, TEXTS, number, raw
from fuzz.target import Mutator

_RANGES = {
    F.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    F.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    F.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    F.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


def message(kind: type[Message], *texts: str, wire: float = 0.1) -> Mutator:
    """`texts` are worth trying in strings; with probability `wire`, or if it is no message, bytes are changed."""
    by_bytes = raw(b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 200, b"\x80" * 11)

    def mutate(random: Random, data: bytes, other: bytes) -> bytes:
        one, donor = kind(), kind()
        try:
            if random.random() < wire:
                raise DecodeError
            one.ParseFromString(data)
            donor.ParseFromString(other)
        except DecodeError:
            return by_bytes(random, data, other)
        for _ in range(random.choice((1, 1, 2, 3))):
            _change(random, one, donor, texts)
        return one.SerializeToString(deterministic=True)

    return mutate


def _change(random: Random, one: Message, donor: Message, texts: tuple[str, ...]) -> None:
    fields = [field for field in one.DESCRIPTOR.fields if not _is_map(field)]
    present = [field for field, _ in one.ListFields() if not _is_map(field)]
    if not fields:
        return
    field = random.choice(present if present and random.random() < 0.8 else fields)
    if random.random() < 0.08:
        one.ClearField(field.name)
    elif field.is_repeated:
        _change_list(random, getattr(one, field.name), field, texts)
    elif field.cpp_type == F.CPPTYPE_MESSAGE:
        part = getattr(one, field.name)
        if random.random() < 0.1:
            part.CopyFrom(getattr(donor, field.name))
            part.SetInParent()
        else:
            part.SetInParent()
            _change(random, part, getattr(donor, field.name), texts)
    else:
        setattr(one, field.name, _value(random, field, getattr(one, field.name), texts))


def _change_list(random: Random, values: Any, field: F, texts: tuple[str, ...]) -> None:
    if field.cpp_type == F.CPPTYPE_MESSAGE:
        if values and random.random() < 0.7:
            _change(random, random.choice(values), field.message_type._concrete_class(), texts)
        else:
            values.add()
        return
    at = random.randrange(len(values) + 1)
    match random.randrange(4):
        case 0 if values:
            del values[min(at, len(values) - 1)]
        case 1:
            values.insert(at, _value(random, field, "" if field.cpp_type == F.CPPTYPE_STRING else 0, texts))
        case 2 if len(values) < 1000:
            values.extend(list(values)[: random.choice((1, 2, 1000))])
        case _:
            if values:
                at = min(at, len(values) - 1)
                values[at] = _value(random, field, values[at], texts)


def _value(random: Random, field: F, now: Any, texts: tuple[str, ...]) -> Any:
    match field.cpp_type:
        case F.CPPTYPE_STRING if field.type == F.TYPE_BYTES:
            return raw()(random, now, b"")
        case F.CPPTYPE_STRING:
            if random.random() < 0.5:
                return random.choice([*TEXTS, *texts])
            return raw()(random, now.encode(), b"").decode(errors=random.choice(("replace", "ignore")))
        case F.CPPTYPE_BOOL:
            return not now
        case F.CPPTYPE_ENUM:
            return number(random, -3, 9)
        case F.CPPTYPE_DOUBLE:
            return random.choice([*FLOATS, float(random.random()), now * 2, -now])
        case F.CPPTYPE_FLOAT:
            return struct.unpack("<f", random.randbytes(4))[0]
    return number(random, *_RANGES[field.cpp_type], now)


def _is_map(field: F) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
