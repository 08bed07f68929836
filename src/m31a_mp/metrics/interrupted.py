"""Interrupted calls: calls that are running although their process is dead.

A dead process may have left the ends of its calls in its segments. A call is therefore interrupted only if
its process was dead before the last drain, and the call is still running after it.

Doubt means alive. An identity may mislead: a container may have a boot id, a clock or a /proc of its own. But
a process that began a call maps a segment, and the lock on that file is visible everywhere on the machine.
"""

from __future__ import annotations

from m31a_mp.kinds.call import caller_of, callers_part
from m31a_mp.kinds.catalog import RUNNING
from m31a_mp.metrics.fold import Fold
from m31a_mp.metrics.rejected import Rejected
from m31a_mp.metrics.totals import TooManyEntriesError, Totals
from m31a_mp.segments.format import DamagedSegmentError
from m31a_mp.segments.reader import SegmentFile, list_segments
from m31a_mp.session.paths import Session
from m31a_mp.system import process
from m31a_mp.system.process import ProcessIdentity


class Callers:
    """The processes with running calls in a session, and which of them are dead."""

    def __init__(self, session: Session) -> None:
        # Processes, by the part that the ids of their calls share.
        self._dead: set[str] = set()
        self._known: set[str] = set()
        self._looked_at: set[str] = set()  # calls
        self._session = session

    def look(self, totals: Totals) -> bool:
        """Check the processes that were not checked before. Return whether any of them is dead."""
        calls = totals.tables[RUNNING.name].calls
        calls_now = set(calls)
        unseen = calls_now - self._looked_at
        self._looked_at = calls_now
        new = {part: call for call in unseen if (part := callers_part(call)) not in self._known}
        gone = {
            part: who for part, call in new.items() if (who := _identity(call)) and process.proven_dead(who)
        }
        mapping = _mapping(self._session) if gone else set()
        dead = {part for part, who in gone.items() if _key(who) not in mapping}
        self._known |= new.keys()
        self._dead |= dead
        return bool(dead)

    def count_interrupted(self, fold: Fold) -> bool:
        """Count the calls of dead processes as interrupted, permanently. Return whether there were any.

        Args:
            fold: A fold of all records, drained or read after the last `look`.
        """
        calls = fold.totals.tables[RUNNING.name].calls
        interrupted = [call for call in calls if callers_part(call) in self._dead] if self._dead else []
        for call in sorted(interrupted):
            try:
                fold.totals.interrupt(call)
            except TooManyEntriesError as error:
                fold.reject(Rejected("metrics.json", 0, f"an interrupted call: {error}", b""))
        fold.interrupted += len(interrupted)
        return bool(interrupted)


def _identity(call: str) -> ProcessIdentity | None:
    """Return the identity of the process that makes the call; None if the id does not contain it."""
    caller = caller_of(call)
    if caller is None:
        return None
    return ProcessIdentity(caller.pid, caller.started, caller.boot_id, caller.namespace)


def _key(who: ProcessIdentity) -> tuple[int, int, int, str]:
    return who.pid, who.started, who.namespace, who.boot_id


def _mapping(session: Session) -> set[tuple[int, int, int, str]]:
    """Return the identities of the processes that map a segment of the session, by the locks on the files."""
    found = set()
    for path in list_segments(session.segments):
        try:
            with SegmentFile.open(path) as file:
                if file.is_locked():
                    found.add(_key(file.identity))
        except (DamagedSegmentError, OSError):
            continue
    return found
