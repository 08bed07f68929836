"""Whether stores have the latest state of a session, as the processes say that share it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from m31a_mp.kinds.times import from_ns, plausible
from m31a_mp.metrics.note import is_living, read_notes, written_at
from m31a_mp.metrics.site import Site
from m31a_mp.session.paths import Session

_GRACE_NS = 10 * 10**9  # a share takes its time


class Unshared(NamedTuple):
    """A session whose latest state is not in a store, although a process was asked to share it there.

    Attributes:
        since: The time of the first failure since the last share, or of the last share; aware, in UTC.
        reason: The reason.
        note: The path of the note that says so.
    """

    since: datetime
    reason: str
    note: str


def unshared(session: Session, site: Site | None) -> list[Unshared]:
    """Return why the latest state of a session is not in a store; empty if it is, or if nothing shares it.

    What counts are the stores in which living processes share; without any, the store of the last one.

    Args:
        session: The session.
        site: The site and number of the current `metrics.json`; None if it has none.
    """
    notes, now = read_notes(session), time.time_ns()
    last = max(notes, key=lambda path: written_at(notes[path]), default=None)
    living = [path for path, note in notes.items() if is_living(note, now)]
    told = [_unshared(path, notes[path], site, now) for path in living or ([last] if last else [])]
    return [found for found in told if found]


def _unshared(path: str, note: Mapping[str, Any], site: Site | None, now: int) -> Unshared | None:
    reason, since, shared_at = note.get("reason"), note.get("failing_since"), note.get("shared_at")
    if isinstance(reason, str) and type(since) is int:
        return Unshared(from_ns(plausible(since, now)), reason, path)
    is_old = site is not None and (site.id, site.number) != (note.get("site"), note.get("number"))
    at = note.get("trying_since") if shared_at is None else shared_at
    if is_old and type(at) is int and now - at > _GRACE_NS:
        reason = f"{note.get('to')}: the store hangs, or no process shares there any more"
        return Unshared(from_ns(plausible(at, now)), reason, path)
    return None
