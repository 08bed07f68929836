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

# How often a thread that waits for the commit of another looks whether that has ended.
_POLL_SECONDS = 0.0005


class GroupCommit:
    """One thread at a time commits for all that wait. Each waits for a commit that began after it asked."""

    def __init__(self, root: str) -> None:
        """Nothing is committed yet; `root` is the session's directory."""
        self._root = root
        self._tickets = itertools.count(1)
        self._settled = 0  # every ticket that is not above this is committed, or has waited in vain
        self.renew()

    def renew(self) -> None:
        """In a forked child: be free. The thread that had the turn is in the parent."""
        self._turn = Turn("a call that writes to the disk", self._root)
        self._committing = allocate_lock()

    def wait(self, commit: Callable[[], None]) -> None:
        """Return when everything that this thread recorded is committed.

        A signal handler that interrupted the very thread that commits does not wait.

        Args:
            commit: Makes everything durable that was recorded before it is called.

        Raises:
            OSError, MetricsError: The commit failed that this thread made for itself and others.
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
