"""`journal.rejected.ndjson`: what could not be counted, with where it stood and why."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from m31a_mp import durable

# Enough to see what went wrong. A flood of garbage must not fill the disk.
_MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rejected:
    """A piece of input that is set aside.

    Attributes:
        file: The name of the file that it stood in, from the session's directory.
        offset: Where in the file it starts.
        reason: What is wrong with it.
        data: What it is; empty if that is a whole file, or was too much to keep.
    """

    file: str
    offset: int
    reason: str
    data: bytes

    def encode(self) -> bytes:
        """As a line, the data as `text` if it is UTF-8, else as `base64`."""
        line: dict[str, str | int] = {"file": self.file, "offset": self.offset, "reason": self.reason}
        try:
            line["text"] = self.data.decode()
        except UnicodeDecodeError:
            line["base64"] = base64.b64encode(self.data).decode()
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def shown(name: str) -> str:
    """A file name as text: one that somebody planted need not be UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def keep(path: Path, items: Iterable[Rejected]) -> None:
    """Add the items that a run before a crash has not added already. Durable when this returns."""
    items = list(items)
    if not items:
        return
    old = list(read(path))
    known = set(old)
    new = [item for item in items if item not in known]
    data = b"".join(item.encode() for item in old + new)
    if new and len(data) <= _MAX_FILE_BYTES:
        durable.replace(path, data)


def read(path: Path) -> Iterator[Rejected]:
    """What was set aside. Lines that are no such are passed over; no file, no items."""
    try:
        lines = durable.read_private(path).splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            item = orjson.loads(line)
            data = item["text"].encode() if "text" in item else base64.b64decode(item["base64"])
            item = Rejected(item["file"], item["offset"], item["reason"], data)
            if isinstance(item.file, str) and isinstance(item.offset, int) and isinstance(item.reason, str):
                yield item
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
