"""What disks and file systems do to files: flipped bits, wrong bytes, empty pages, pages in the wrong place, lost ends."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

PAGE = 4_096
"""SQLite's page size, in bytes; also what a file system loses at once."""


def _bit(data: bytearray, generator: random.Random) -> str:
    position = generator.randrange(len(data) * 8)
    data[position // 8] ^= 1 << position % 8
    return f"bit {position % 8} of byte {position // 8}"


def _byte(data: bytearray, generator: random.Random) -> str:
    position = generator.randrange(len(data))
    data[position] = (data[position] + generator.randrange(1, 256)) % 256
    return f"byte {position}"


def _burst(data: bytearray, generator: random.Random) -> str:
    start = generator.randrange(len(data))
    length = min(generator.randrange(2, 64), len(data) - start)
    data[start : start + length] = generator.randbytes(length)
    return f"bytes {start} to {start + length}"


def _zero_page(data: bytearray, generator: random.Random) -> str:
    start = generator.randrange(0, len(data), PAGE)
    length = min(PAGE, len(data) - start)
    data[start : start + length] = bytes(length)
    return f"page at {start} zeroed"


def _misplaced_page(data: bytearray, generator: random.Random) -> str:
    source, target = generator.randrange(0, len(data), PAGE), generator.randrange(0, len(data), PAGE)
    length = min(PAGE, len(data) - source, len(data) - target)
    data[target : target + length] = data[source : source + length]
    return f"page at {source} written at {target}"


def _cut(data: bytearray, generator: random.Random) -> str:
    length = generator.randrange(len(data))
    del data[length:]
    return f"cut to {length} bytes"


def _cut_at_page(data: bytearray, generator: random.Random) -> str:
    length = generator.randrange(0, len(data), PAGE)
    del data[length:]
    return f"cut to {length} bytes"


def _emptied(data: bytearray, generator: random.Random) -> str:
    data.clear()
    return "emptied"


KINDS: Mapping[str, tuple[int, Callable[[bytearray, random.Random], str]]] = {
    "bit": (8, _bit),
    "byte": (4, _byte),
    "burst": (2, _burst),
    "zero page": (2, _zero_page),
    "misplaced page": (2, _misplaced_page),
    "cut": (2, _cut),
    "cut at page": (1, _cut_at_page),
    "emptied": (1, _emptied),
}
"""How often each kind is drawn, and what does it: it changes the bytes and says how."""


def damage(data: bytes, generator: random.Random) -> tuple[str, str, bytes]:
    """Damages the bytes of a file, which must have some.

    Returns:
        The kind of damage, what was done in words, and the bytes, which differ from those given.
    """
    while True:
        kind = generator.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
        damaged = bytearray(data)
        words = KINDS[kind][1](damaged, generator)
        if damaged != data:
            return kind, words, bytes(damaged)
