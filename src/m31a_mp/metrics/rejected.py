"""`journal.rejected.ndjson`: what could not be counted, with where it stood and why."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from errno import EFBIG, EISDIR, ELOOP, ENOENT

import orjson

from m31a_mp.kinds import json
from m31a_mp.system import files

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
        """Return the line: the data is `text` if it is UTF-8, else `base64`."""
        line: dict[str, str | int] = {"file": self.file, "offset": self.offset, "reason": self.reason}
        try:
            line["text"] = self.data.decode()
        except UnicodeDecodeError:
            line["base64"] = base64.b64encode(self.data).decode()
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def shown(name: str) -> str:
    """A file name as text: one that somebody planted need not be UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def append(path: str, items: Iterable[Rejected]) -> None:
    """Add the items that a run before a crash has not added already. Durable when this returns."""
    new = dict.fromkeys(item.encode() for item in items)
    if not new:
        return
    if os.path.isdir(path):
        return  # somebody wants it so; all is counted nevertheless
    try:
        old = files.read_private(path, _MAX_FILE_BYTES)
    except OSError as error:
        if error.errno == EFBIG:
            return  # it is full, and more
        if error.errno not in (ENOENT, ELOOP):  # a symlink is replaced, not followed
            raise
        old = b""
    old = old[: old.rfind(b"\n") + 1]  # without what somebody tore of it
    for line in io.BytesIO(old):
        new.pop(line, None)
    more = b"".join(new)
    if more and len(old) + len(more) <= _MAX_FILE_BYTES:
        files.replace(path, old + more)


def read(path: str) -> Iterator[Rejected]:
    """Yield what was set aside. Malformed lines are skipped. Yields nothing if the file does not exist."""
    try:
        lines = io.BytesIO(files.read_private(path, _MAX_FILE_BYTES))
    except OSError as error:
        if error.errno not in (ENOENT, EFBIG, ELOOP, EISDIR):
            raise
        return
    for line in lines:
        try:
            item = json.parse(line)
            data = item["text"].encode() if "text" in item else base64.b64decode(item["base64"])
            item = Rejected(item["file"], item["offset"], item["reason"], data)
            if isinstance(item.file, str) and isinstance(item.offset, int) and isinstance(item.reason, str):
                yield item
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
