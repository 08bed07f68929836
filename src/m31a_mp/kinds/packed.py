"""Histograms packed into plain tuples, which add up fast.

    (zero_count, offset, number, size, most)

The number has all counts in one integer, the first one in its lowest bytes, each in `size` bytes; none is
greater than `most`. To add up such integers takes a tenth of the time of adding up lists.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence
from typing import Any

import orjson

from m31a_mp.kinds.checks import INT64_MAX
from m31a_mp.kinds.histogram import HIGHEST, LOWEST, SCALE, Histogram

Packed = tuple[int, int, int, int, int]
_CODES = {2: "H", 4: "I", 8: "Q"}  # of `struct`, for a number of so many bytes
_LEAST_SIZE = 2
_MOST_IN_A_BYTE = 255
_FIELDS = operator.itemgetter("scale", "zero_count", "offset", "bucket_counts")
_FIRST, _LAST = operator.itemgetter(0), operator.itemgetter(-1)


def pack(histogram: Histogram) -> Packed:
    """Pack a histogram."""
    return histogram.zero_count, histogram.offset, *_packed(histogram.counts)


def _packed(counts: list[int]) -> tuple[int, int, int]:
    """Return the number of counts, the bytes that each takes in it, and what none of them exceeds."""
    try:
        data = bytearray(_LEAST_SIZE * len(counts))
        data[::_LEAST_SIZE] = bytes(counts)
        return int.from_bytes(data, "little"), _LEAST_SIZE, _MOST_IN_A_BYTE
    except ValueError:  # one is more than a byte
        most = max(counts)
        size = _size(most)
        return _number(counts, size), size, most


def read_plain(values: list[Any]) -> list[Packed] | None:
    """Read and pack many histograms, all of them as this library usually writes them.

    Returns:
        What `Histogram.from_json` returns for each of them, packed. None if one of the values is different,
        and must be read by itself.
    """
    try:
        scales, zeros, offsets, counts = zip(*map(_FIELDS, values), strict=True)
        # As JSON, lists of counts are digits, commas and brackets. That is faster than to look at each type.
        text = orjson.dumps(counts, option=orjson.OPT_STRICT_INTEGER)  # none is more than 2**53 - 1
        if not (
            text.translate(None, b"0123456789,") == b"[" + b"[]" * len(counts) + b"]"
            and set(scales) == {SCALE}
            and set(map(type, zeros + offsets)) == {int}
            and min(zeros) >= 0
            and max(zeros) <= INT64_MAX
            and min(offsets) >= LOWEST
            and max(map(operator.add, offsets, map(len, counts))) <= HIGHEST + 1
            and all(map(_FIRST, counts))
            and all(map(_LAST, counts))
        ):
            return None
        return [
            (zero, offset, *_packed(some)) for zero, offset, some in zip(zeros, offsets, counts, strict=True)
        ]
    except (IndexError, KeyError, TypeError):  # also for objects that only orjson takes for integers
        return None


def unpack(packed: Packed) -> Histogram:
    """Return the histogram that was packed."""
    zero_count, offset, number, size, _ = packed
    counts = _counts(number, size)
    return Histogram(zero_count, offset if counts else 0, counts)


def add(parts: Sequence[Packed]) -> Packed:
    """Add up packed histograms. There is at least one."""
    zeros, offsets, numbers, sizes, mosts = zip(*parts, strict=True)
    if 0 in numbers:  # an empty histogram has no offset
        filled = [part for part in parts if part[2]]
        if not filled:
            return sum(zeros), 0, 0, _LEAST_SIZE, 0
        _, offsets, numbers, sizes, mosts = zip(*filled, strict=True)
    offset, most = min(offsets), sum(mosts)
    size = _size(most)
    if set(sizes) != {size}:
        numbers = tuple(
            [
                number if mine == size else _number(_counts(number, mine), size)
                for number, mine in zip(numbers, sizes, strict=True)
            ]
        )
    bits = 8 * size
    number = sum([number << bits * (at - offset) for number, at in zip(numbers, offsets, strict=True)])
    return sum(zeros), offset, number, size, most


def _size(most: int) -> int:
    """Return the number of bytes for counts up to `most`."""
    size = _LEAST_SIZE
    while most >> 8 * size:
        size *= 2
    return size


def _number(counts: list[int], size: int) -> int:
    if size in _CODES:
        data = struct.pack(f"<{len(counts)}{_CODES[size]}", *counts)
    else:
        data = b"".join([count.to_bytes(size, "little") for count in counts])
    return int.from_bytes(data, "little")


def _counts(number: int, size: int) -> list[int]:
    length = -(-number.bit_length() // (8 * size))
    data = number.to_bytes(length * size, "little")
    if size in _CODES:
        return list(struct.unpack(f"<{length}{_CODES[size]}", data))
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]
