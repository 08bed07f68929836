"""Whether other machines have the latest state of a session, according to the note of the sharing process."""

from __future__ import annotations

import time
from datetime import datetime
from typing import NamedTuple

from m31a_mp.kinds.times import from_ns, plausible
from m31a_mp.metrics.site import Site, read_note
from m31a_mp.session.paths import Session

_GRACE_NS = 10 * 10**9  # a share takes its time


class Unshared(NamedTuple):
    """A session whose latest state is not shared, although a process was asked to share it.

    Attributes:
        since: The time of the first failure since the last share, or of the last share; aware, in UTC.
        reason: The reason.
    """

    since: datetime
    reason: str


def unshared(session: Session, site: Site | None) -> Unshared | None:
    """Return why the latest state of a session is not shared; None if it is, or if nothing ever shared it.

    Args:
        session: The session.
        site: The site and number of the current `metrics.json`; None if it has none.
    """
    note, now = read_note(session), time.time_ns()
    reason, since, shared_at = note.get("reason"), note.get("failing_since"), note.get("shared_at")
    if isinstance(reason, str) and type(since) is int:
        return Unshared(from_ns(plausible(since, now)), reason)
    is_old = site is not None and (site.id, site.number) != (note.get("site"), note.get("number"))
    last = note.get("trying_since") if shared_at is None else shared_at
    if is_old and type(last) is int and now - last > _GRACE_NS:
        return Unshared(from_ns(plausible(last, now)), "the store hangs, or no process shares it any more")
    return None
