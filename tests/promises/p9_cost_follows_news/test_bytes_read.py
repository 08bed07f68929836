"""Input is read a few times at most, whatever it says of itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damage import header, tool_call
from m31a_mp.journal import reader
from m31a_mp.journal.batch import MAX_BATCH_BYTES, Batch
from strategies import encoded

MIB = 1024 * 1024


class Counting(io.BytesIO):
    """A file that counts the bytes that are read of it, each time that they are."""

    total = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.total += len(data)
        return data

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self.total += len(line)
        return line


class RawCounting(io.FileIO):
    """The same of what lies under a buffer."""

    total = 0

    def readinto(self, buffer: Any, /) -> int:
        size = super().readinto(buffer) or 0
        self.total += size
        return size


# Each byte is looked for a header at most twice as far as there is none, read as what it is, and once more
# in vain by the first header that lies; what a header has read behind it is less than its own length.
TIMES_READ = 6
HEADERS = 300  # if each had the rest read, that would be fifty times the limit
LIE = b'{"batch":"x","first":1,"count":%d,"bytes":4194304,"crc32":"00000000"}\n'
TAILS = {
    "nothing": b"",
    "records": tool_call("x") * 7_000,
    "a line": b"x" * MIB,
    "lines": b"xx\n" * 30_000,
    "zeros": bytes(MIB),
    "beginnings of headers": b'x{"batch":' * 30_000,
    "headers that cannot be read": b'{"batch":\n' * 10_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("count", [0, 1, 2**62])
@pytest.mark.parametrize("before", [b"", b"\0", b"x\0", b"x\n\0", b"x\n"])
def test_headers_that_lie_do_not_have_the_rest_read_for_each_of_them(
    tmp_path: Path, before: bytes, count: int, tail: str
) -> None:
    data = (before + LIE % count) * HEADERS + TAILS[tail]
    stream = Counting(data)
    items = sum(1 for _ in reader.read(stream))
    assert items >= HEADERS
    assert stream.total <= TIMES_READ * len(data)
    path = tmp_path / "journal"
    path.write_bytes(data)
    with RawCounting(path) as raw, io.BufferedReader(raw, reader._BUFFER_BYTES) as buffered:
        assert sum(1 for _ in reader.read(buffered)) == items
        assert raw.total <= TIMES_READ * len(data)


def test_right_batches_between_headers_that_lie_are_all_found() -> None:
    batches = [encoded(Batch("00000000000000aa", i, tool_call("right"))) for i in range(1, 2001)]
    data = b"".join(b"\0" + LIE % 1 + batch for batch in batches) + TAILS["records"]
    stream = Counting(data)
    found = [item for item in reader.read(stream) if isinstance(item, Batch) and item.records]
    assert len(found) == 2000
    assert stream.total <= TIMES_READ * len(data)


_pieces = st.one_of(
    st.builds(
        lambda count, size: header(batch="x", count=count, bytes=size),
        st.sampled_from([0, 1, 3, 10**6]),
        st.sampled_from([0, 1, 40, 79, 400, 5000, 4 * MIB]),
    ),
    st.builds(lambda n: encoded(Batch("a", n, tool_call("a") * n)), st.integers(0, 5)),
    st.sampled_from([b"\0", b"\n", b"{", b"x", b'{"batch":', b'\n{"batch":', b'\0{"batch"', tool_call("x")]),
    st.binary(max_size=20),
    st.builds(lambda byte, size: byte * size, st.sampled_from([b"\0", b"\n", b"x"]), st.integers(0, 300)),
)


@given(st.lists(st.tuples(_pieces, st.integers(1, 12)), max_size=8), st.integers(1, 12))
def test_no_input_is_read_more_than_a_few_times(pieces: list[tuple[bytes, int]], times: int) -> None:
    data = b"".join(piece * repeated for piece, repeated in pieces) * times
    stream = Counting(data)
    items = sum(1 for _ in reader.read(stream))
    assert stream.total <= TIMES_READ * len(data)
    assert items <= len(data)


class CountingStream(io.BytesIO):
    """Knows how many bytes were read from it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data

    def readline(self, size: int | None = -1) -> bytes:
        data = super().readline(size)
        self.count += len(data)
        return data


def test_headers_that_announce_more_than_is_theirs_do_not_make_the_journal_be_read_again_and_again() -> None:
    data = header(bytes=MAX_BATCH_BYTES) * 4000
    stream = CountingStream(data)
    list(reader.read(stream))
    assert stream.count < 200 * len(data)  # each time to its end would be 2000 times
