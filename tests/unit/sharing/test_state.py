"""Shared states: what comes back is what was shared, and damage is told."""

from __future__ import annotations

from contextlib import suppress

import orjson
import pytest

from m31a_mp.metrics.site import Place, Site, new_id
from m31a_mp.sharing.state import BadStateError, Header, NewerStateError, State

SITE = Site(new_id(), 7, Place(131, "boot", "host"))


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 100_000])
def test_state_comes_back_as_it_was(content: bytes) -> None:
    state = State.of(SITE, content, has_ended=True)
    read = State.parse(state.data())
    assert read == state
    assert read.content() == content
    assert (read.header.site, read.header.number, read.header.has_ended) == (SITE.id, 7, True)
    assert Header.parse(state.header.line()) == state.header


def test_large_content_is_compressed_and_small_is_not() -> None:
    assert len(State.of(SITE, b"x" * 100_000).body) < 1000
    assert State.of(SITE, b"x" * 100).body == b"x" * 100


@pytest.mark.parametrize("size", [100, 10_000])
def test_any_cut_and_any_flipped_byte_is_found(size: int) -> None:
    content = bytes(i * i % 251 for i in range(size))
    data = State.of(SITE, content).data()
    for cut in range(0, len(data), max(1, len(data) // 200)):
        with pytest.raises(BadStateError):
            State.parse(data[:cut]).content()
    for at in range(data.index(b"\n") + 1, len(data), max(1, len(data) // 200)):
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with suppress(BadStateError):
            assert State.parse(flipped).content() == content  # zlib does not use each bit


@pytest.mark.parametrize(
    "line", [b"", b"garbage", b"[]", b"{}", b'{"m31a_mp_state":0}', b'{"m31a_mp_state":1}', b"1 {}"]
)
def test_garbage_is_no_header(line: bytes) -> None:
    with pytest.raises(BadStateError):
        Header.parse(line)


def test_later_version_is_told_as_such() -> None:
    state = State.of(SITE, b"{}")
    header = orjson.loads(state.header.line())
    for change in ({"m31a_mp_state": 2}, {"encoding": "zstd"}):
        line = orjson.dumps(header | change)
        with pytest.raises(NewerStateError, match=r"later release|not known to this release"):
            State.parse(line + b"\n" + state.body).content()


def test_body_that_expands_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m31a_mp.sharing.state.MAX_BYTES", 1000)
    with pytest.raises(BadStateError, match="more than 1000 bytes"):
        State.of(SITE, b"x" * 100_000).content()
