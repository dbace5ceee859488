"""What a payload may cost is looked at before anything is built of it.

**Equal hashes.** To put n members of one hash into a set takes n * n / 2 comparisons with the interpreter lock held:
288 KB of chosen integers stopped a host for 2.6 s. Integers that msgpack knows, text and bytes cannot be chosen so;
what comes by an extension or a box can, and comes in tagged payloads alone. To count the hashes takes about as long as
to build the set: 9 ms for 100,000 integers, 26 ms for 100,000 texts. So it is not done for few members, nor for the
maps of a short payload, where the harm is as small.

**Memory.** An empty map is one byte in a payload and 72 in memory, an empty deque 5 and 768. So the value of a payload
may take `GROWTH` times the limit of a payload, and `check_structure` counts what it will take: each object by its
first bytes, as CPython 3.10 to 3.14 stores what `Decoder` builds. No payload below an eighth of the limit can take so
much. For a longer one it is mostly enough to count each byte as if it began an object: 2 ms for a million ints, whose
decoding takes 30. The rest is gone through object by object: that takes about as long as decoding, 0.1 s for a million
objects, but for runs of like ones a tenth of it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import MessageTooLarge, RemoteProtocolError
from .forms import BESIDE_FROM_BYTES, EXT_MARK, TAG, Buffer, all_str

__all__ = [
    "GROWTH", "HARMLESS", "LENGTHS", "SHORT_BYTES", "check_structure", "long_bytes", "map_of", "spread", "too_large",
]  # fmt: skip

MAX_EQUAL_HASHES = 64
SHORT_BYTES = 16_384  # a payload up to this length holds some 1,000 keys, which take 10 ms at worst
GROWTH = 32  # how many times the limit of a payload its value may take in memory
HARMLESS = 8  # a payload of that part of the limit cannot: no value takes 256 times its payload


# ---------------------------------------------------------------- equal hashes


def spread(build: Callable[..., Any]) -> Callable[..., Any]:
    """``build``, the builder of a set, behind the check of its members."""

    def checked(decoder: Any, *items: Any) -> Any:
        if len(items) > MAX_EQUAL_HASHES:
            _check(items)
        return build(decoder, *items)

    return checked


def map_of(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """The dictionary of ``pairs``, after the check of its keys."""
    if len(pairs) > MAX_EQUAL_HASHES:
        keys = [key for key, _ in pairs]
        if not all_str(keys):
            _check(keys)
    return dict(pairs)


def _check(items: Sequence[Any]) -> None:
    hashes = list(map(hash, items))
    if len(hashes) - len(set(hashes)) >= MAX_EQUAL_HASHES:
        ((_, most),) = Counter(hashes).most_common(1)
        if most > MAX_EQUAL_HASHES:
            raise RemoteProtocolError(f"{most} members of a set or keys of a map have one hash")


# ---------------------------------------------------------------- memory


def check_structure(payload: Buffer, limit: int, what: str = "") -> None:
    """Raise MessageTooLarge unless ``payload`` has ``limit`` bytes at most, and its value `GROWTH` times as many.

    ``what`` stands before the text of the error.
    """
    size, budget = len(payload), GROWTH * limit
    if size > limit:
        raise too_large(size, limit, what)
    if size <= limit // HARMLESS:
        return
    data = bytes(payload)
    if _at_most(data) <= budget:
        return
    weight = _Scan(data).run(budget).weight
    if weight > budget:
        text = f"the value would take more than {budget:,} bytes of memory, {GROWTH} times max_structured_bytes"
        raise MessageTooLarge(f"{what}{text}; {_REMEDY}", weight, budget)


def too_large(size: int, limit: int, what: str = "") -> MessageTooLarge:
    """The error for a structured part of ``size`` bytes."""
    text = f"the structured part of the message is {size:,} bytes, limit {limit:,} (max_structured_bytes)"
    return MessageTooLarge(f"{what}{text}; {_REMEDY}", size, limit)


_REMEDY = "large data travels beside it as bytes, text or arrays"


def long_bytes(payload: bytes) -> int:
    """How many bytes of ``payload`` are the contents of texts and bytes that could travel beside it."""
    return _Scan(payload).run(1 << 62).long


_SLOT = 8  # in the list or the table that holds an object
_SMALL = bytes(range(0x80)) + b"\xc0\xc2\xc3"  # ints that CPython has only once, None, True and False
_SCALARS = bytes(range(0xA0, 0xC0)) + bytes(range(0xC4, 0xDC)) + bytes(range(0xE0, 0x100))
_FEW_ITEMS = bytes(range(0x80, 0x86)) + bytes(range(0x90, 0xA0)) + b"\xdc\xdd"  # lists, and maps of up to 5


def _at_most(data: bytes) -> int:
    """A bound for the memory of the value, by far too high where texts are not ASCII or numbers are random."""
    bound, is_tagged, has_large_maps = _SLOT * len(data), data[:1] == TAG, False
    for start in range(0, len(data), _PIECE):  # other threads run in between: a look at 16 MiB takes 30 ms
        not_small = data[start : start + _PIECE].translate(None, _SMALL)
        boxes = not_small.translate(None, _SCALARS)
        bound += _TEXT * (len(not_small) - len(boxes)) + (_MAP + _FEW) * len(boxes)
        has_large_maps = has_large_maps or bool(boxes.translate(None, _FEW_ITEMS))
    if has_large_maps:  # an entry has two bytes at least
        bound += (_ENTRY + _PAIR * is_tagged) // 2 * len(data)
    if is_tagged:
        bound += _MARK_BYTES * data.count(0xD4) + _LEAF * sum(map(data.count, _EXTENSIONS))
    return bound


_PIECE = 262_144
_EXTENSIONS = [bytes((head,)) for head in (0xC7, 0xC8, 0xC9, 0xD5, 0xD6, 0xD7, 0xD8)]
_MARK_BYTES = 3000
_MARKS = {  # what a box takes beside its items and the list that they come in
    ord(letter): weight
    for letter, weight in {
        "t": 0, "s": 224, "f": 224, "d": 768, "r": 64, "l": 64, "q": 64, "b": 64, "a": 700, "g": 64, "o": 400, "e": 700,
        "p": _MARK_BYTES, "x": 800, "A": 1500, "T": 1500,
    }.items()
}  # fmt: skip
_SETS = b"sf"
_IN_SET = 110  # an item, while the table of a set is as empty as it may be
_LEAF = 200  # an extension: a path takes most
_MAP, _FEW, _ENTRY, _PAIR = 72, 168, 48, 64  # empty; up to 5 entries; each of more; what holds it in a tagged payload
_LIST, _TEXT, _BYTES, _NUMBER = 72, 72, 56, 48
_WIDE = 4  # bytes for each of a text, should one of its characters need four


def _map_bytes(count: int) -> int:
    return _MAP + (0 if not count else max(_FEW, _ENTRY * count))


# By the first byte of an object: its length where that is fixed, else 0, and its memory with the slot that holds it.
_SIZES = [0] * 256
_WEIGHTS = [_SLOT] * 256
for _head in _SMALL:
    _SIZES[_head] = 1
for _n in range(16):
    _SIZES[0x80 + _n], _WEIGHTS[0x80 + _n] = 1, _SLOT + _map_bytes(_n)
    _SIZES[0x90 + _n], _WEIGHTS[0x90 + _n] = 1, _SLOT + _LIST
for _n in range(32):
    _SIZES[0xA0 + _n] = 1 + _n
    _WEIGHTS[0xA0 + _n] = _SLOT if _n < 2 else _TEXT + _WIDE * _n
    _SIZES[0xE0 + _n], _WEIGHTS[0xE0 + _n] = 1, _NUMBER
for _head, _size in zip(range(0xCA, 0xD4), (5, 9, 2, 3, 5, 9, 2, 3, 5, 9), strict=True):
    _SIZES[_head], _WEIGHTS[_head] = _size, _NUMBER
for _head, _size in zip(range(0xD5, 0xD9), (4, 6, 10, 18), strict=True):
    _SIZES[_head], _WEIGHTS[_head] = _size, _LEAF
LENGTHS = {  # of the contents, or the number of items, behind the first byte
    **dict.fromkeys((0xC4, 0xC7, 0xD9), struct.Struct(">xB")),
    **dict.fromkeys((0xC5, 0xC8, 0xDA, 0xDC, 0xDE), struct.Struct(">xH")),
    **dict.fromkeys((0xC6, 0xC9, 0xDB, 0xDD, 0xDF), struct.Struct(">xI")),
}
_WINDOW = 1024  # like objects looked at together


class _Scan:
    """One way through a payload, object by object; msgpack nests without ends, so depth does not matter."""

    __slots__ = ("data", "is_tagged", "items", "long", "place", "weight")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.is_tagged = data[:1] == TAG
        self.place = int(self.is_tagged)
        self.weight = self.long = 0
        self.items = 0  # of the list that began last

    def run(self, budget: int) -> _Scan:
        """Go on until ``weight`` is over ``budget``. What is no msgpack ends it: nothing can be built of that."""
        data, end, last = self.data, len(self.data), -1
        place, weight = self.place, 0
        try:
            while place < end and weight <= budget:
                head = data[place]
                size = _SIZES[head]
                if not size:
                    self.place, self.weight = place, weight
                    self._long_one(head)
                    place, weight, last = self.place, self.weight, head
                elif head == last:
                    heads = data[place : place + size * _WINDOW : size]
                    like = len(heads) - len(heads.lstrip(heads[:1]))
                    place, weight, last = place + like * size, weight + like * _WEIGHTS[head], -1
                else:
                    place, weight, last = place + size, weight + _WEIGHTS[head], head
                if 0x90 <= head <= 0x9F:
                    self.items = head & 15
        except (struct.error, IndexError, KeyError):
            pass
        self.weight = weight
        return self

    def _long_one(self, head: int) -> None:
        if head == 0xD4:
            self.weight += self._mark_bytes() if self.data[self.place + 1] == EXT_MARK else _LEAF
            self.place += 3
            return
        length = LENGTHS[head]
        (count,) = length.unpack_from(self.data, self.place)
        self.place += length.size
        if head in (0xDC, 0xDD):
            self.items = count
            self.weight += _SLOT + _LIST
        elif head in (0xDE, 0xDF):
            self.weight += _SLOT + _map_bytes(count) + (_PAIR * count if self.is_tagged else 0)
        else:
            self._pass(head, count)

    def _pass(self, head: int, count: int) -> None:
        if head in (0xC7, 0xC8, 0xC9):
            self.weight += _LEAF + _WIDE * count
            count += 1  # its code
        else:
            self.weight += _TEXT + _WIDE * count if head in (0xD9, 0xDA, 0xDB) else _BYTES + count
            if count > BESIDE_FROM_BYTES:
                self.long += count
        self.place += count

    def _mark_bytes(self) -> int:
        """Of the mark that begins a box, and of what it makes."""
        letter, count = self.data[self.place + 2], self.items
        in_set = _IN_SET * min(count, len(self.data)) if letter in _SETS and count > 5 else 0
        return _MARKS[letter] + in_set
