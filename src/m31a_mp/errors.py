"""The errors that this library raises on purpose.

Each is a `MetricsError` and also a fitting builtin. Each has the path that it is about, and a message with
advice. Wrong arguments raise plain `TypeError` and `ValueError`.
"""

from __future__ import annotations

import os


class MetricsError(Exception):
    """The base of the errors of this library.

    Attributes:
        path: The file or directory that the error is about.
    """

    def __init__(self, message: str, path: str | os.PathLike[str]) -> None:
        super().__init__(message)
        self.path = os.fspath(path)


class SessionOwnedError(MetricsError, RuntimeError):
    """The session has a living owner, and only one process may own it.

    Attributes:
        path: The path of `owner.lock`.
        pid: The owner's process id; None if unknown.
        started_at: The start of the owner's process (RFC 3339); None if unknown.
    """

    def __init__(
        self, message: str, path: str | os.PathLike[str], pid: int | None, started_at: str | None
    ) -> None:
        super().__init__(message, path)
        self.pid = pid
        self.started_at = started_at


class JournalLockedError(MetricsError, TimeoutError):
    """Another process held `journal.lock` for longer than this call may wait.

    The records stay where they are, and the next flush that gets the lock takes them.

    Attributes:
        path: The lock file.
        holders: The process ids that hold the lock, as far as the system shows them.
    """

    def __init__(self, message: str, path: str | os.PathLike[str], holders: list[int]) -> None:
        super().__init__(message, path)
        self.holders = holders


class DamagedMetricsError(MetricsError, ValueError):
    """`metrics.json` does not have the format that this library and the Go program write.

    Attributes:
        path: The file.
        reason: A description of the damage.
    """

    def __init__(self, message: str, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(message, path)
        self.reason = reason


class UnsupportedVersionError(DamagedMetricsError):
    """The file has a newer format than this version of the library reads."""


class StoreError(MetricsError, ConnectionError):
    """A store of shared states cannot be reached, refuses, or does not hold what it should.

    Attributes:
        path: The URL of the store, without a password.
    """


class GatheredSessionError(MetricsError, RuntimeError):
    """`metrics.json` was gathered from sites. It has no owner, and cannot count records of its own."""


class InterruptedCallError(MetricsError, RuntimeError):
    """A signal handler or a finalizer called `flush()` or `snapshot()` while it interrupted the same call."""


class ExportError(MetricsError, ConnectionError):
    """A receiver could not be reached, or did not take the metrics. The session is not concerned.

    Attributes:
        path: The URL of the receiver.
    """


def is_of_handler(error: BaseException) -> bool:
    """Whether a signal handler of the program raised the error, for instance `TimeoutError` at an alarm.

    An error of the system has a number, and this library raises no `OSError` without one. The handler's error
    must reach the program, which would wait forever otherwise.
    """
    if isinstance(error, MetricsError):
        return False
    return error.errno is None if isinstance(error, OSError) else isinstance(error, ValueError)
