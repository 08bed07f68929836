"""Every error this library raises on purpose.

Each is a `MetricsError` and also the builtin that fits, carries the path it is about, and says in its
message what helps. Wrong arguments are plain `TypeError` and `ValueError`.
"""

from __future__ import annotations

import os


class MetricsError(Exception):
    """Base of the errors of this library.

    Attributes:
        path: The file or directory that the error is about.
    """

    def __init__(self, message: str, path: str | os.PathLike[str]) -> None:
        super().__init__(message)
        self.path = os.fspath(path)


class SessionOwnedError(MetricsError, RuntimeError):
    """The session has a living owner, and only one process may own it.

    Attributes:
        path: The owner's lease, `owner.lock`.
        pid: The owner's process id, or None when it could not be told.
        started_at: When the owner's process started (RFC 3339), or None.
    """

    def __init__(
        self, message: str, path: str | os.PathLike[str], pid: int | None, started_at: str | None
    ) -> None:
        super().__init__(message, path)
        self.pid = pid
        self.started_at = started_at


class JournalLockedError(MetricsError, TimeoutError):
    """Another process held `journal.lock` for longer than this call may wait.

    The records stay where they are, and the next flush that has the lock takes them.

    Attributes:
        path: The lock file.
        holders: The process ids that hold it, as far as the system tells.
    """

    def __init__(self, message: str, path: str | os.PathLike[str], holders: list[int]) -> None:
        super().__init__(message, path)
        self.holders = holders


class DamagedMetricsError(MetricsError, ValueError):
    """`metrics.json` is not what this library or a Go program of the same table writes.

    Attributes:
        path: The file.
        reason: What is wrong with it.
    """

    def __init__(self, message: str, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(message, path)
        self.reason = reason


class UnsupportedVersionError(DamagedMetricsError):
    """The file was written in a newer format than this version of the library reads."""


class InterruptedCallError(MetricsError, RuntimeError):
    """A signal handler or a finalizer called `flush()` or `snapshot()`, and had interrupted the same call."""
