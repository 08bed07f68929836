"""The notes on sharing beside `metrics.json`: what the processes that share a session did last, or why not.

There is one note for each store. Several processes may share in one store, and write its note without a lock.
Notes are for people. Only a refusal of the store has an effect: the next `metrics.json` gets another number,
or becomes another site (see `metrics.site.following`).
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Mapping
from typing import Any

import orjson

from m31a_mp.kinds import json
from m31a_mp.session.paths import Session
from m31a_mp.system import files, process
from m31a_mp.system.process import ProcessIdentity

_NOTE_BYTES = 64 * 1024
# A process writes its note once a minute. Whether a process in another container lives, only its note tells.
_SILENT_NS = 5 * 60 * 10**9


def note_path(session: Session, store: str) -> str:
    """Return the path of the note on a store. `store` is its URL without a password."""
    return f"{session.root}/sharing.{zlib.crc32(os.fsencode(store)):08x}.json"


def read_note(path: str) -> dict[str, Any]:
    """Read a note; empty without one."""
    try:
        note = json.parse(files.read_private(path, _NOTE_BYTES))
    except (OSError, orjson.JSONDecodeError):
        return {}
    return note if isinstance(note, dict) else {}


def read_notes(session: Session) -> dict[str, dict[str, Any]]:
    """Read all notes of a session, by their paths."""
    return {path: read_note(path) for path in sorted(files.find(session.root, "sharing", ".json"))}


def write_note(path: str, note: Mapping[str, Any], *, is_ended: bool = False) -> None:
    """Replace a note. `is_ended` says that this process does not share in the store any more.

    Raises:
        OSError: The disk is full, or fails.
    """
    me = process.current()
    by = None if is_ended else [me.pid, me.started, me.boot_id, me.namespace]
    data = orjson.dumps({**note, "written_at": time.time_ns(), "by": by}, option=orjson.OPT_APPEND_NEWLINE)
    files.hand_out(path, data, is_precious=False)


def is_living(note: Mapping[str, Any], now: int) -> bool:
    """Whether the process that wrote a note still shares, as far as can be seen at `now`, in ns."""
    try:
        by = ProcessIdentity(*note["by"])
        if process.seen_alive(by):
            return True
        return not process.proven_dead(by) and now - written_at(note) < _SILENT_NS
    except (KeyError, TypeError):
        return False


def written_at(note: Mapping[str, Any]) -> int:
    """Return the time of a note, in ns since the epoch; 0 if the note has none."""
    time_ns = note.get("written_at")
    return time_ns if type(time_ns) is int else 0
