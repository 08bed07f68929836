"""Calls that were interrupted: they are under way, and the process that makes them is dead.

A process that died left the ends of its calls in its segments, perhaps. So a call is interrupted only if its
process was dead before everything was drained, and the call is still under way after that.
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
    """The processes that have calls under way, and which of them are dead.

    Attributes:
        dead: Those that were proven dead when they were looked at, as the ids of their calls name them.
    """

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self._known: set[str] = set()

    def look(self, totals: Totals) -> bool:
        """Look at the processes of which no call was known before; returns whether any of them is dead."""
        calls = totals.tables[RUNNING.name].calls
        new = {part: call for call in calls if (part := callers_part(call)) not in self._known}
        dead = {part for part, call in new.items() if _is_dead(call)}
        self._known |= new.keys()
        self.dead |= dead
        return bool(dead)


def count_interrupted(fold: Fold, dead: set[str]) -> int:
    """Count the calls of dead processes as interrupted, once and for ever; returns how many there were.

    Args:
        fold: Everything that is there, drained or read after the processes were seen dead.
        dead: The processes.
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
