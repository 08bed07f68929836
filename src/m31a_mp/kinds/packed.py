"""Histograms packed into plain tuples, which add up fast.

    (zero_count, offset, number, size, most)

The number has all counts in one integer, the first one in its lowest bytes, each in `size` bytes; none is
greater than `most`. To add up such integers takes a tenth of the time of adding up lists.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from m31a_mp.kinds.histogram import Histogram

Packed = tuple[int, int, int, int, int]
_CODES = {2: "H", 4: "I", 8: "Q"}  # of `struct`, for a number of so many bytes
_LEAST_SIZE = 2
_MOST_IN_A_BYTE = 255


def pack(histogram: Histogram) -> Packed:
    """Pack a histogram."""
    counts = histogram.counts
    try:
        data = bytearray(_LEAST_SIZE * len(counts))
        data[::_LEAST_SIZE] = bytes(counts)
        number, size, most = int.from_bytes(data, "little"), _LEAST_SIZE, _MOST_IN_A_BYTE
    except ValueError:  # one is more than a byte
        most = max(counts)
        size = _size(most)
        number = _number(counts, size)
    return histogram.zero_count, histogram.offset, number, size, most


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
