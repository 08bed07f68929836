"""The streams of a program that writes more than a line."""

from __future__ import annotations

import codecs
import io
import sys

# What stands for the characters that tables draw with, one for one: the columns stay in line.
_PLAIN = dict(zip("─→…▁▂▃▄▅▆▇█", "->~12345678", strict=True))


def prepare() -> None:
    """Make stdout and stderr take any text: a terminal may lack the characters of a name. Buffer stdout."""
    codecs.register_error("m31a_mp.plain", _plain)
    _buffer_output()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="m31a_mp.plain")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace a character that the encoding lacks: an error handler for `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        return codecs.backslashreplace_errors(error)
    character = error.object[error.start]
    return _PLAIN.get(character) or ascii(character)[1:-1], error.start + 1


def _buffer_output() -> None:
    """Buffer an unbuffered stdout.

    Without a buffer, if a pipe or a disk takes only a part of a write, the rest is silently lost.
    """
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.RawIOBase):
        encoding, errors, raw = stream.encoding, stream.errors, stream.detach()
        buffered = io.BufferedWriter(raw)
        sys.stdout = sys.__stdout__ = io.TextIOWrapper(buffered, encoding, errors, line_buffering=True)  # type: ignore[misc]
