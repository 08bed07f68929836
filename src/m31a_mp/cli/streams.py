"""The streams of a program that writes more than a line."""

from __future__ import annotations

import io
import sys


def prepare() -> None:
    """Make stdout and stderr take any text: a terminal may lack the characters of a name. Buffer stdout."""
    _buffer_output()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _buffer_output() -> None:
    """Buffer an unbuffered stdout.

    Without a buffer, if a pipe or a disk takes only a part of a write, the rest is silently lost.
    """
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.RawIOBase):
        encoding, errors, raw = stream.encoding, stream.errors, stream.detach()
        buffered = io.BufferedWriter(raw)
        sys.stdout = sys.__stdout__ = io.TextIOWrapper(buffered, encoding, errors, line_buffering=True)  # type: ignore[misc]
