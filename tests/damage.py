"""Lines and batches of a journal, right ones and damaged ones."""

from __future__ import annotations

import json


def tool_call(name: str) -> bytes:
    return b'{"event":"tool_call","time":1,"name":"%b","success":true,"duration_ms":1}\n' % name.encode()


def header(**fields: str | int) -> bytes:
    """The header of a batch with whatever in it; what is not given is that of a batch of one record."""
    size = len(tool_call("batch"))
    given = {"batch": "00000000000000aa", "first": 1, "count": 1, "bytes": size, "crc32": "00000000"} | fields
    return json.dumps(given, separators=(",", ":")).encode() + b"\n"
