"""`journal.rejected.ndjson`: input that could not be counted, with its place and the reason."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator
from errno import EFBIG, EISDIR, ELOOP, ENOENT
from typing import NamedTuple

import orjson

from m31a_mp.kinds import json
from m31a_mp.system import files

# The limit keeps a flood of garbage from filling the disk.
_MAX_FILE_BYTES = 64 * 1024 * 1024


class Rejected(NamedTuple):
    """A piece of input that is set aside.

    Attributes:
        file: The name of the file that contained the piece, relative to the session's directory.
        offset: Bytes before the piece in the file.
        reason: The reason for the rejection.
        data: The bytes of the piece; empty for a whole file, or beyond the limit of memory.
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
    """Return a file name as text. The name of a planted file may not be UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def append(path: str, items: Iterable[Rejected]) -> None:
    """Add the items to the file, without those that a run before a crash added. Durable on return."""
    new = dict.fromkeys(item.encode() for item in items)
    if not new:
        return
    if os.path.isdir(path):
        return  # a user put a directory there to keep no items; they are counted nevertheless
    try:
        old = files.read_private(path, _MAX_FILE_BYTES)
    except OSError as error:
        if error.errno == EFBIG:
            return  # the file is full
        if error.errno not in (ENOENT, ELOOP):  # a symlink is replaced, not followed
            raise
        old = b""
    old = old[: old.rfind(b"\n") + 1]  # without a torn last line
    for line in io.BytesIO(old):
        new.pop(line, None)
    more = b"".join(new)
    if more and len(old) + len(more) <= _MAX_FILE_BYTES:
        files.replace(path, old + more)


def read(path: str) -> Iterator[Rejected]:
    """Yield the items in the file, without malformed lines; nothing if the file is missing or too large."""
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
