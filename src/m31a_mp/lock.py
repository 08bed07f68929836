"""Exclusive file locks that die with their process, and never outlive it in a forked child."""

from __future__ import annotations

import fcntl
import os
import time
from errno import EACCES, EAGAIN

from m31a_mp import durable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from m31a_mp.durable import StrPath

_POLL_SECONDS = 0.001

# flock(2) belongs to the open file, which a fork shares: a child that kept the descriptor would hold the
# lock for as long as it lives, long after the parent died. The child therefore closes every one of these.
_descriptors: set[int] = set()
_forks_begun = 0
_forks_ended = 0


class FileLock:
    """An exclusive lock on a file that stays: unlinking it would let two holders in.

    The same lock as `flock FILE` in a shell. Taking it makes the file; where it is free, that costs a few
    microseconds and never waits. One object is used by one thread at a time.
    """

    _fd: int | None = None

    def __init__(self, path: StrPath, take: Callable[[int], bool] | None = None) -> None:
        """Not taken yet; `take` locks an open file if nobody else has, `lock_if_free` if it is not given."""
        self._take = take or lock_if_free
        self._inode: tuple[int, int] | None = None
        self._pid = 0
        self.path = os.fspath(path)

    def acquire(self, timeout: float = 0.0) -> bool:
        """Take the lock within `timeout` seconds (0: only if it is free now). Returns whether it did."""
        deadline = time.monotonic() + timeout
        try:
            while not self._try():
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self.release()
            raise
        return True

    def _try(self) -> bool:
        forks = _forks_ended
        # Known to this object before it is locked: an interrupt from here on leaves it to `release`.
        self._fd = durable.open_private(self.path, os.O_RDWR | os.O_CREAT)
        _descriptors.add(self._fd)
        self._inode, self._pid = _inode(self._fd), os.getpid()
        # If another thread has begun to fork, the child may have this descriptor and not know of it: with
        # the lock it would keep that.
        if _forks_begun == forks and self._take(self._fd):
            return True
        self.release()
        return False

    @property
    def fd(self) -> int:
        """The descriptor of the locked file."""
        if self._fd is None:
            raise ValueError(f"{self.path} is not locked")
        return self._fd

    @property
    def held(self) -> bool:
        """Whether this object holds the lock in this process.

        Not so if the program closed descriptors that it does not know: the number may be another file now.
        """
        return self._fd is not None and self._pid == os.getpid() and _inode(self._fd) == self._inode

    def release(self) -> None:
        """Give the lock back. In a forked child, whose copy is closed already, it does nothing."""
        if self._fd is None:
            return
        held, fd = self.held, self._fd
        if held:
            try:
                fcntl.flock(fd, fcntl.LOCK_UN)
            except OSError:
                pass  # closing it does the same
        self._fd = None  # before the number may become somebody else's file
        if self._pid == os.getpid():
            _descriptors.discard(fd)
        if held:
            os.close(fd)

    def __del__(self) -> None:
        self.release()


def lock_if_free(fd: int) -> bool:
    """Take an exclusive lock on an open file, if nobody has it. Closing the last copy of it gives it back.

    The lock that filelock takes, too; but importing that takes twice as long as starting Python, and a record
    that has no room needs this.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (EAGAIN, EACCES):
            return False
        raise
    return True


def holders(path: StrPath) -> list[int]:
    """The pids that hold a lock on `path`, as far as /proc/locks tells."""
    try:
        status = os.stat(path)
        with open("/proc/locks", "rb") as file:
            lines = file.read().decode().splitlines()
    except OSError:
        return []
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    # `1: FLOCK  ADVISORY  WRITE 4242 fe:00:131 0 EOF`; a waiter's line has `->` after the number.
    fields = (line.split() for line in lines)
    return [int(f[4]) for f in fields if f[1] == "FLOCK" and f[5] == device]


def _inode(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _before_fork() -> None:
    global _forks_begun  # noqa: PLW0603  # counted here, compared in `_try`
    _forks_begun += 1


def _after_fork_in_parent() -> None:
    global _forks_ended  # noqa: PLW0603
    _forks_ended += 1


def _after_fork_in_child() -> None:
    _after_fork_in_parent()
    for fd in list(_descriptors):
        try:
            os.close(fd)
        except OSError:
            pass  # the program closed it
    _descriptors.clear()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
