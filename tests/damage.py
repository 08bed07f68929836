"""Journals and segments to damage, and errors of the system."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m31a_mp.journal.batch import Batch
from m31a_mp.segments.segment import Segment
from m31a_mp.session.paths import Session
from strategies import Record, encoded

# --- A journal ----------------------------------------------------------------------------------------


def tool_call(name: str) -> bytes:
    return b'{"event":"tool_call","time":1,"name":"%b","success":true,"duration_ms":1}\n' % name.encode()


def header(**fields: str | int) -> bytes:
    """The header of a batch with whatever in it; what is not given is that of a batch of one record."""
    size = len(tool_call("batch"))
    given = {"batch": "00000000000000aa", "first": 1, "count": 1, "bytes": size, "crc32": "00000000"} | fields
    return json.dumps(given, separators=(",", ":")).encode() + b"\n"


def line(name: str, duration_ms: int = 1) -> bytes:
    return Record("tool_call", (name, True, duration_ms)).line(len(name))


def batch(first: int, *lines: bytes, writer: str = "00000000000000aa") -> bytes:
    return encoded(Batch(writer, first, b"".join(lines)))


@dataclass(frozen=True)
class Unit:
    """A batch, or a line on its own, with the calls that it holds."""

    data: bytes
    calls: dict[str, int]

    @property
    def is_batch(self) -> bool:
        return self.data.startswith(b'{"batch"')


# Every call has a name and a duration of its own, so that what is counted tells what was read.
UNITS = [
    Unit(line("foreign-1", 1), {"foreign-1": 1}),
    Unit(batch(1, line("one", 2), line("two é", 4), line("three", 8)), {"one": 2, "two é": 4, "three": 8}),
    Unit(line("foreign-2 \U0001f600", 16), {"foreign-2 \U0001f600": 16}),
    Unit(line("foreign-3", 32), {"foreign-3": 32}),
    Unit(batch(1, line("other", 64), writer="00000000000000bb"), {"other": 64}),
    Unit(batch(4, line("four", 128), line("five", 256)), {"four": 128, "five": 256}),
]
JOURNAL = b"".join(unit.data for unit in UNITS)


# --- A segment ----------------------------------------------------------------------------------------

WRITER = "00000000000000aa"
LINES = [Record("tool_call", (f"tool-{i} é", True, 1 << i)).line(i) for i in range(1, 5)]
CALLS = {f"tool-{i} é": 1 << i for i in range(1, 5)}


def staged(session: Session, lines: list[bytes], *, first: int = 1) -> Path:
    """A segment with these lines that nobody maps any more."""
    segment = Segment.create(session.segments, WRITER, first, 4096)
    segment.store(b"".join(lines))
    segment.close()
    return Path(segment.name)


def with_hole(line: bytes) -> bytes:
    """The line, of which some bytes are missing."""
    return line[:10] + bytes(4) + line[14:]


def write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def flip(path: Path, offset: int, bits: int) -> None:
    write(path, offset, bytes([path.read_bytes()[offset] ^ bits]))


# --- The system ---------------------------------------------------------------------------------------


def raising(error: OSError) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail
