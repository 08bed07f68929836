"""Interrupted calls: calls that are running although their process is dead.

The segments of a dead process may contain the ends of its calls. A call is therefore interrupted only if its
process was dead before the drain of all segments, and the call is still running after the drain.
"""

from __future__ import annotations

from m31a_mp.kinds.call import caller_of, callers_part
from m31a_mp.kinds.catalog import RUNNING
from m31a_mp.metrics.fold import Fold
from m31a_mp.metrics.rejected import Rejected
from m31a_mp.metrics.totals import TooManyEntriesError, Totals
from m31a_mp.system import process
from m31a_mp.system.process import ProcessIdentity


class Callers:
    """The processes with running calls, and which of them are dead.

    Attributes:
        dead: The processes that were proven dead, named by the process part of their call ids.
    """

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self._known: set[str] = set()

    def look(self, totals: Totals) -> bool:
        """Check the processes that were not checked before. Return whether any of them is dead."""
        calls = totals.tables[RUNNING.name].calls
        new = {part: call for call in calls if (part := callers_part(call)) not in self._known}
        dead = {part for part, call in new.items() if _is_dead(call)}
        self._known |= new.keys()
        self.dead |= dead
        return bool(dead)


def count_interrupted(fold: Fold, dead: set[str]) -> int:
    """Count the calls of dead processes as interrupted, permanently. Return their number.

    Args:
        fold: A fold of all records, drained or read after the processes were proven dead.
        dead: The dead processes, as in `Callers.dead`.
    """
    if not dead:
        return 0
    calls = [call for call in fold.totals.tables[RUNNING.name].calls if callers_part(call) in dead]
    for call in sorted(calls):
        try:
            fold.totals.interrupt(call)
        except TooManyEntriesError as error:
            fold.reject(Rejected("metrics.json", 0, f"an interrupted call: {error}", b""))
    return len(calls)


def _is_dead(call: str) -> bool:
    caller = caller_of(call)
    if caller is None:
        return False
    identity = ProcessIdentity(caller.pid, caller.started, caller.boot_id, caller.namespace)
    return process.proven_dead(identity)
