"""The beginning of a session: nothing is recorded, and `metrics.json` says who the site is and when it began.

An owner publishes that file when it opens a new session. Here this takes what a record needs, and no more:
what merging imports takes nearly five times as long as starting Python.
"""

from __future__ import annotations

import os
import time

from m31a_mp.kinds.checks import quoted
from m31a_mp.session.paths import Session
from m31a_mp.system import files, process
from m31a_mp.system.turn import IMPORTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FILE = """{
  "session_id": %s,
  "started_at": "%s",
  "updated_at": "%s",
  "tools": [],
  "llms": [],
  "phases": [],
  "dropped": {},
  "rejected": 0,
  "m31a_mp": {
    "version": 1,
    "journal": 0,
    "set_aside": [],
    "writers": {},
    "records": 0,
    "site": {
      "id": "%s",
      "number": 1,
      "inode": %d,
      "boot": %s,
      "host": %s,
      "origins": {}
    }
  }
}
"""
_METRICS = {"metrics.json"}
_WITHOUT_RECORDS = {"journal.lock", "owner.lock", "segments"}


class Beginning:
    """The beginning of a session that this process owns.

    Attributes:
        started: The time when this process opened the session, in ns since the epoch.
        site: The id, inode, boot and host of the site in the file that this process published.
        identity: The identity of that file; None without one.
    """

    __slots__ = ("_is_over", "_session", "identity", "site", "started")

    def __init__(self, session: Session, started: int) -> None:
        self.started = started
        self._session = session
        self.site = ("", 0, "", "")
        self.identity: tuple[int, ...] | None = None
        self._is_over = False

    def end(self) -> None:
        """Leave everything to the next compaction."""
        self._is_over, self.identity = True, None

    def lasts(self, is_owned: Callable[[], bool]) -> bool:
        """Whether there is nothing to merge: no record, and the `metrics.json` that this process published.

        In a new session, this publishes the file first. It survives a power cut.

        Args:
            is_owned: Returns whether this process still holds the lease; called directly before publishing.

        Raises:
            OSError: The file could not be written.
        """
        if self._is_over:
            return False
        session = self._session
        names = _names(session)
        if names == set() and is_owned():
            files.sync_parents(session.root)
            # Programs in other languages lock this file. Some would create it with the modes of their umask.
            os.close(files.open_private(session.journal_lock, os.O_RDWR | os.O_CREAT))
            self.site = _new_site(session)
            files.replace(session.metrics, _content(session.id, self.started, *self.site))
            self.identity = identity(session)
        elif names != _METRICS or self.identity is None or identity(session) != self.identity:
            self._is_over = True
        return not self._is_over


def import_compactor() -> None:
    """Import what merging needs.

    Raises:
        InterruptedCallError: A signal handler calls this in the middle of such an import.
    """
    if not _is_imported:
        IMPORTS.take(_import_compactor)


_is_imported = False


def _import_compactor() -> None:
    global _is_imported  # noqa: PLW0603
    from m31a_mp.kinds import json  # noqa: F401, PLC0415  # first: it imports orjson safely
    from m31a_mp.metrics import compactor  # noqa: F401, PLC0415  # takes five times as long as Python's start

    _is_imported = True


def _names(session: Session) -> set[str] | None:
    """Return the names in a session's directory that are not always there; None if there are segments.

    Records move from segments to the journal: if the journal was listed first, a drain could be missed.
    """
    try:
        return None if os.listdir(session.segments) else {*os.listdir(session.root)} - _WITHOUT_RECORDS
    except OSError:
        return None  # a directory is gone: the compaction says what is wrong


def _new_site(session: Session) -> tuple[str, int, str, str]:
    """Return the id of a new site, and its place: see `metrics.site`."""
    inode = os.lstat(session.root).st_ino
    return os.urandom(16).hex(), inode, process.current().boot_id, os.uname().nodename


def _content(session_id: str, started: int, site_id: str, inode: int, boot: str, host: str) -> bytes:  # noqa: PLR0913, PLR0917  # one for each value
    """Return the `metrics.json` of a session without records, as `metrics.file.encoded` makes it."""
    microseconds = started // 1000 % 1_000_000
    time_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(started // 10**9))
    time_text += f".{microseconds:06d}Z" if microseconds else "Z"
    values = (quoted(session_id), time_text, time_text, site_id, inode, quoted(boot), quoted(host))
    return (_FILE % values).encode()


def identity(session: Session) -> tuple[int, ...] | None:
    """Return what tells one publication of `metrics.json` from another; None if there is no file."""
    try:
        status = os.lstat(session.metrics)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
