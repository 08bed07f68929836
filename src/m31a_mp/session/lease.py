"""The lease of a session's owner."""

from __future__ import annotations

import os
import time

from m31a_mp.errors import SessionOwnedError
from m31a_mp.session.paths import Session
from m31a_mp.system import files, process
from m31a_mp.system.flock import FileLock, hold, holders, lock_if_free, still_holds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

# Who saves, compacts, or merges without an owner takes the lease for moments: it is worth waiting for. A
# collector keeps it for life. The line of a lease that is held for moments has `_BRIEF`.
_LEASE_SECONDS = 0.5
_BRIEF_SECONDS = 10.0  # a merge after a crash may have much to do, which the next owner need not do then
_BRIEF = "is_brief"
_OWNER_BYTES = 4096
_BEGINNING = b'{"pid":%d,"started_at":'


def owning(session: Session, call: Callable[[], T], timeout: float = _LEASE_SECONDS) -> T:
    """Own a session during a call. The session's directory exists.

    Args:
        session: The session.
        call: The call to make.
        timeout: Seconds to wait for the lease of another owner.

    Returns:
        The result of `call`.

    Raises:
        SessionOwnedError: The session has another owner, perhaps in this process.
    """
    path = session.owner_lock
    returned: list[T] = []
    if not hold(path, lambda: returned.append(_as_owner(path, call)), timeout, _lock_if_free):
        raise owned_error(session)
    return returned[0]


def _as_owner(path: str, call: Callable[[], T]) -> T:
    fd = files.open_private(path, os.O_RDWR)
    with files.changing(fd):
        _write_line(fd, is_brief=True)
        try:
            return call()
        finally:
            _empty(fd)


def still_owned(session: Session) -> bool:
    """Whether this thread is in `owning`, and no other owner is possible."""
    return still_holds(session.owner_lock)


class Lease:
    """The exclusive right to compact a session, held through a lock on `owner.lock`.

    `sharing.lock` is of the same kind: of all processes that share without an owner, one has it, and merges.

    The kernel releases the lease when the process dies, however it dies. The line in the file only tells
    people who the owner is. An owner that releases the lease empties the file. A killed one leaves its line.
    """

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock
        _write_line(lock.fd)

    @classmethod
    def take(cls, session: Session) -> Lease:
        """Become the owner of a session whose directory exists.

        Raises:
            SessionOwnedError: The session has another owner, perhaps in this process.
        """
        deadline = time.monotonic() + _BRIEF_SECONDS
        while True:
            if lease := cls.take_if_free(session, _LEASE_SECONDS):
                return lease
            owner = read_owner(session.owner_lock)  # empty while a lease is being taken or given back
            if time.monotonic() > deadline or (owner and _BRIEF not in owner):
                raise owned_error(session)

    @classmethod
    def take_if_free(cls, session: Session, timeout: float = 0.0) -> Lease | None:
        """Become the owner. Return None if another owner keeps the lease for all of `timeout` seconds."""
        lock = FileLock(session.owner_lock, _lock_if_free)
        try:
            return cls(lock) if lock.acquire(timeout) else None
        except BaseException:
            lock.release()
            raise

    @property
    def held(self) -> bool:
        """Whether this process holds the lease. False in a forked child, or if `owner.lock` was removed."""
        return self._lock.held

    def release(self) -> None:
        """Release the lease. A second call is harmless."""
        if self.held:
            _empty(self._lock.fd)
        self._lock.release()


def _lock_if_free(fd: int) -> bool:
    # Both take the same lock. To import filelock takes twice as long as to start Python, so only a process
    # that finds the lease taken, and waits, imports it.
    if lock_if_free(fd):
        return True
    from filelock import lock_descriptor

    return lock_descriptor(fd, blocking=False)


def _write_line(fd: int, *, is_brief: bool = False) -> None:
    pid = os.getpid()
    started_at = process.start_time(pid)
    start = b'"%b"' % started_at.encode() if started_at else b"null"
    line = b"%b%b%b}\n" % (_BEGINNING % pid, start, b',"%b":true' % _BRIEF.encode() if is_brief else b"")
    # Write before truncating: a reader without the lock never finds the file empty.
    with files.step("take lease"):
        os.pwrite(fd, line, 0)
        os.ftruncate(fd, len(line))


def _empty(fd: int) -> None:
    try:
        with files.step("give back lease"):
            os.ftruncate(fd, 0)
    except OSError:
        pass


def owned_error(session: Session) -> SessionOwnedError:
    """Return an error that names the owner of the session."""
    owner = read_owner(session.owner_lock)
    pids = holders(session.owner_lock)
    pid = pids[0] if pids else owner.get("pid")
    if not isinstance(pid, int):
        pid = None
    started_at = owner.get("started_at") if pid == owner.get("pid") else None
    who = process.describe(pid) if pid else "another process"
    since = f", started {started_at}" if started_at else ""
    if os.getpid() in pids:
        who += ", which is this process"
        advice = "use its collector, or call stop() on that first"
    else:
        advice = "record into it with attach(), or stop its owner first"
    return SessionOwnedError(
        f"session {session.id!r} is owned by {who}{since}; {advice}",
        session.owner_lock,
        pid,
        started_at if isinstance(started_at, str) else None,
    )


def was_owned_here(session: Session) -> bool:
    """Whether this process was the last owner of the session, and its line is still there."""
    try:
        return files.read_private(session.owner_lock, _OWNER_BYTES).startswith(_BEGINNING % os.getpid())
    except OSError:
        return False


def read_owner(path: str) -> dict[str, object]:
    """Read the owner's line in `owner.lock`. Empty if there is none, or the file cannot be read."""
    from m31a_mp.kinds import json  # and orjson, which opening a session does not need

    try:
        content = json.parse(files.read_private(path, _OWNER_BYTES))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
