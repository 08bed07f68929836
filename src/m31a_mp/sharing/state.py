"""A shared state: a header line, then the bytes of `metrics.json`, perhaps compressed.

    {"m31a_mp_state":1,"site":"5e1f(...)","number":7,"host":"node-1","time":1764409680000000000,
     "has_ended":false,"boot":"8c1f(...)","inode":131,"encoding":"zlib","bytes":2412,"crc32":"0badcafe"}

`bytes` is the length of what follows the header's newline, `crc32` the checksum of `metrics.json` itself. The
key `m31a_mp_state` is the version.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from typing import Any

import orjson

from m31a_mp.kinds import json
from m31a_mp.kinds.parts import integer
from m31a_mp.metrics.site import Place, Site, check_id

VERSION = 1
RENEW_SECONDS = 60.0
"""After this time, an unchanged state is shared again: a sign of life, and the store may have lost it."""
MAX_HEADER_BYTES = 4096
MAX_BYTES = 512 * 1024 * 1024  # of a state, also after decompression; as for metrics.json
_VERSION_KEY = "m31a_mp_state"
_ZLIB = "zlib"
_MAX_HOST = 255
_WORTH_COMPRESSING = 1024


class BadStateError(ValueError):
    """A state cannot be used; the message says why."""


class NewerStateError(BadStateError):
    """A later version of this library shared the state."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a store lists of a state.

    Attributes:
        site: The id of the site.
        number: The number of the state. A state with a greater number replaces it.
        place: Where the site's directory lies.
        time: The time of the share, in ns since the epoch.
        has_ended: Whether the site's owner stopped.
        encoding: The compression of the body; empty for none.
        size: Bytes of the body.
        crc32: The checksum of `metrics.json`, 8 hexadecimal digits. It tells two states of one number apart.
    """

    site: str
    number: int
    place: Place
    time: int
    has_ended: bool
    encoding: str
    size: int
    crc32: str

    def line(self) -> bytes:
        """Return the header as one line."""
        return orjson.dumps(
            {
                _VERSION_KEY: VERSION,
                "site": self.site,
                "number": self.number,
                **self.place.kept(),
                "time": self.time,
                "has_ended": self.has_ended,
                "encoding": self.encoding,
                "bytes": self.size,
                "crc32": self.crc32,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )

    @classmethod
    def parse(cls, line: bytes) -> Header:
        """Parse a header line.

        Raises:
            NewerStateError: A later version wrote it.
            BadStateError: It is not a header.
        """
        try:
            document: Any = json.parse(line)
        except orjson.JSONDecodeError:
            raise BadStateError("it is not a state of a session") from None
        version = document.get(_VERSION_KEY) if isinstance(document, dict) else None
        if type(version) is not int or version < VERSION:
            raise BadStateError("it is not a state of a session")
        if version > VERSION:
            raise NewerStateError(
                f"it is of version {version}; this library reads {VERSION}. Use a later release here"
            )
        try:
            return cls(
                check_id(document["site"]),
                integer(document["number"]),
                Place.restored(document | {"host": str(document["host"])[:_MAX_HOST]}),
                integer(document["time"]),
                document["has_ended"] is True,
                str(document["encoding"]),
                integer(document["bytes"]),
                str(document["crc32"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadStateError(f"its header is damaged: {error!r:.200}") from None


@dataclass(frozen=True, slots=True)
class State:
    """A header and its body, as they lie in a store."""

    header: Header
    body: bytes

    @classmethod
    def of(cls, site: Site, content: bytes, *, has_ended: bool = False) -> State:
        """Make a state of the bytes of a site's `metrics.json`."""
        body, encoding = content, ""
        if len(content) >= _WORTH_COMPRESSING:
            body, encoding = zlib.compress(content, 1), _ZLIB
        checksum = f"{zlib.crc32(content):08x}"
        header = Header(
            site.id, site.number, site.place, time.time_ns(), has_ended, encoding, len(body), checksum
        )
        return cls(header, body)

    @classmethod
    def parse(cls, data: bytes) -> State:
        """Parse the bytes of a state.

        Raises:
            NewerStateError: A later version shared it.
            BadStateError: It is damaged.
        """
        line, newline, body = data.partition(b"\n")
        if not newline or len(line) > MAX_HEADER_BYTES:
            raise BadStateError("it is not a state of a session")
        header = Header.parse(line)
        if len(body) != header.size:
            raise BadStateError(f"it has {len(body)} bytes after its header, not {header.size}")
        return cls(header, body)

    def data(self) -> bytes:
        """Return the bytes of the state."""
        return self.header.line() + self.body

    def content(self) -> bytes:
        """Return the bytes of `metrics.json`.

        Raises:
            NewerStateError: A later version compressed them.
            BadStateError: They are damaged.
        """
        content = self._expanded() if self.header.encoding else self.body
        if f"{zlib.crc32(content):08x}" != self.header.crc32:
            raise BadStateError("its checksum is wrong")
        return content

    def _expanded(self) -> bytes:
        if self.header.encoding != _ZLIB:
            raise NewerStateError(f"its encoding {self.header.encoding!r:.40} is not known to this release")
        expanding = zlib.decompressobj()
        try:
            content = expanding.decompress(self.body, MAX_BYTES)
        except zlib.error as error:
            raise BadStateError(f"it cannot be decompressed: {error}") from None
        if not expanding.eof:
            raise BadStateError(f"it is cut short, or has more than {MAX_BYTES} bytes")
        return content
