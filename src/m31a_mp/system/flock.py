"""Exclusive file locks that die with their process, and never outlive it in a forked child."""

from __future__ import annotations

import fcntl
import os
import time
from _thread import get_ident
from errno import EACCES, EAGAIN, ECANCELED
from io import FileIO

from m31a_mp.system import files, fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


_POLL_SECONDS = 0.001

# flock(2) belongs to the open file, which a fork shares: a child that kept the descriptor would hold the
# lock for as long as it lives, long after the parent died. The child therefore closes every one of these:
# the files of locks that are held during a call, by path and thread, and the descriptors of `FileLock`s, with
# their device and inode.
_files: dict[tuple[str, int], FileIO] = {}
_descriptors: dict[int, tuple[int, int] | None] = {}


def hold(
    path: str, call: Callable[[], object], timeout: float = 0.0, take: Callable[[int], bool] | None = None
) -> bool:
    """Make a call while this thread holds the exclusive lock on a file, which is made if it is not there.

    The lock is given back when the call is over, wherever an exception of a signal handler comes: C code
    closes the file. The same lock as `flock FILE` in a shell.

    Args:
        path: The lock's file. It stays: unlinking it would let two holders in.
        call: What to do.
        timeout: Seconds to wait for the lock; 0: never wait.
        take: Locks a descriptor if nobody else has; `lock_if_free` if it is not given.

    Returns:
        Whether the lock was had, and the call made. Not where this very thread holds it already.
    """
    fork.settle()
    if holds(path):
        return False
    me = (path, get_ident())
    deadline = time.monotonic() + timeout
    while True:
        ended = fork.ended()
        with FileIO(files.open_private(path, os.O_RDWR | os.O_CREAT), "r+") as file:
            _files[me] = file
            # If another thread has begun to fork, the child may have this file and not know of it: with the
            # lock it would keep that.
            if fork.begun() == ended and _is_taken(file, path, take or lock_if_free):
                try:
                    call()
                finally:
                    _unlock(file)
                    _files.pop(me, None)
                return True
        _files.pop(me, None)
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)


def _is_taken(file: FileIO, path: str, take: Callable[[int], bool]) -> bool:
    try:
        return take(file.fileno()) and is_at(path, file.fileno())
    except ValueError:  # the file is closed: a signal handler forked, and this is the child
        raise files.ForkedError(ECANCELED, "left to the parent process", path) from None


def _unlock(file: FileIO) -> None:
    """Give the lock back, also where another process has a copy of the file for a moment, being started."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
    except (OSError, ValueError):
        pass  # closed: this is a forked child, or the program closes what it does not know


def holds(path: str) -> bool:
    """Whether this thread is in `hold` of that path: a signal handler or a finalizer may ask."""
    file = _files.get((path, get_ident()))
    return file is not None and not file.closed


def still_holds(path: str) -> bool:
    """Whether this thread is in `hold` of that path, and nobody has removed the lock's file meanwhile."""
    file = _files.get((path, get_ident()))
    return file is not None and not file.closed and is_at(path, file.fileno())


class FileLock:
    """The lock of `hold`, held for longer than a call. One object is used by one thread at a time."""

    _fd: int | None = None

    def __init__(self, path: str, take: Callable[[int], bool] | None = None) -> None:
        """Not taken yet; `take` locks an open file if nobody else has, `lock_if_free` if it is not given."""
        self._take = take or lock_if_free
        self._inode: tuple[int, int] | None = None
        self._pid = 0
        self.path = path

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
        fork.settle()
        ended = fork.ended()
        # Known to this object before it is locked: an interrupt from here on leaves it to `release`.
        self._fd = files.open_private(self.path, os.O_RDWR | os.O_CREAT)
        self._inode, self._pid = files.inode_of(self._fd), os.getpid()
        _descriptors[self._fd] = self._inode
        # If another thread has begun to fork, the child may have this descriptor and not know of it: with
        # the lock it would keep that.
        if fork.begun() == ended and self._take(self._fd) and is_at(self.path, self._fd):
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
        """Whether this object holds the lock in this process, and anybody who wants it has to ask for it.

        Not so when somebody removed the file: the next one makes it anew, and gets the lock.
        """
        return self._fd is not None and self._is_ours() and is_at(self.path, self._fd)

    def _is_ours(self) -> bool:
        """Not so if the program closed descriptors that it does not know: the number may be another file."""
        return self._fd is not None and self._pid == os.getpid() and files.inode_of(self._fd) == self._inode

    def release(self) -> None:
        """Give the lock back. In a forked child, whose copy is closed already, it does nothing."""
        if self._fd is None:
            return
        is_ours, fd = self._is_ours(), self._fd
        if is_ours:
            try:
                fcntl.flock(fd, fcntl.LOCK_UN)
            except OSError:
                pass  # closing it does the same
        self._fd = None  # before the number may become somebody else's file
        if self._pid == os.getpid():
            _descriptors.pop(fd, None)
        if is_ours:
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


def holders(path: str) -> list[int]:
    """The pids that hold a lock on `path`, as far as /proc/locks tells."""
    try:
        status = os.stat(path)
        lines = files.read("/proc/locks").decode().splitlines()
    except OSError:
        return []
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    # `1: FLOCK  ADVISORY  WRITE 4242 fe:00:131 0 EOF`; a waiter's line has `->` after the number.
    fields = (line.split() for line in lines)
    # Where locks come and go while it is read, a line may be there twice.
    return list(dict.fromkeys(int(f[4]) for f in fields if f[1] == "FLOCK" and f[5] == device))


def is_at(path: str, fd: int) -> bool:
    """Whether an open file is the one at that path: not so when it was removed, or replaced."""
    inode = files.inode_of(fd)
    return inode is not None and files.is_there(path, inode)


@fork.after_in_child("locks")
def _let_go() -> None:
    for file in list(_files.values()):
        try:
            file.close()
        except OSError:
            pass  # the program closed it
    _files.clear()
    for fd, inode in list(_descriptors.items()):
        if inode == files.inode_of(fd):  # else it is closed, and perhaps another file has the number
            os.close(fd)
        _descriptors.pop(fd, None)
