"""Group commit: threads that wait for the disk share one fsync."""

from __future__ import annotations

import itertools
import time
from _thread import allocate_lock

from m31a_mp.errors import JournalLockedError
from m31a_mp.system.turn import Turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# The interval at which a waiting thread checks whether the running commit has ended.
_POLL_SECONDS = 0.0005


class GroupCommit:
    """Lets one thread commit for all waiting threads. Each waits for a commit that began after its call."""

    def __init__(self, root: str) -> None:
        """Create a group without commits. `root` is the session's directory."""
        self._root = root
        self._tickets = itertools.count(1)
        self._settled = 0  # tickets up to this one are committed, or their wait timed out
        self.renew()

    def renew(self) -> None:
        """Release the turn in a forked child: the thread that had the turn exists only in the parent."""
        self._turn = Turn("a call that writes to the disk", self._root)
        self._committing = allocate_lock()

    def wait(self, commit: Callable[[], None]) -> None:
        """Wait until everything that this thread recorded is committed.

        A signal handler that interrupts the committing thread itself does not wait.

        Args:
            commit: Makes everything durable that was recorded before the call of `commit`.

        Raises:
            OSError, MetricsError: This thread ran the commit, and the commit failed.
        """
        ticket = next(self._tickets)
        while self._settled < ticket and not self._turn.is_mine():
            if self._committing.locked():
                # Poll instead of queueing for the turn: the running commit may already cover this record.
                time.sleep(_POLL_SECONDS)
                continue
            self._turn.take(lambda: self._commit_for(ticket, commit))
            return

    def _commit_for(self, ticket: int, commit: Callable[[], None]) -> None:
        if self._settled < ticket:
            with self._committing:
                self._run(commit)

    def _run(self, commit: Callable[[], None]) -> None:
        covered = next(self._tickets)  # everything with a lower ticket is recorded by now
        try:
            commit()
        except JournalLockedError:
            self._settled = covered  # release the other waiters too: they have waited the full timeout
            raise
        self._settled = covered
