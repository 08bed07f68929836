"""Exclusive file locks that end with their process. A forked child does not keep them."""

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

# A lock of flock(2) belongs to the open file, which a fork shares: a child that kept the descriptor would
# hold the lock after the death of the parent. The child therefore closes all of these files. `_files` has the
# locks of `hold`, by path and thread. `_descriptors` has those of `FileLock`s, with their device and inode.
_files: dict[tuple[str, int], FileIO] = {}
_descriptors: dict[int, tuple[int, int] | None] = {}


def hold(
    path: str, call: Callable[[], object], timeout: float = 0.0, take: Callable[[int], bool] | None = None
) -> bool:
    """Make a call while this thread holds the exclusive lock on a file. A missing file is created.

    The lock is released when the call ends, even if a signal handler raises at any point: C code closes the
    file. `flock FILE` in a shell takes the same lock.

    Args:
        path: The lock's file. It is never unlinked: two processes could then hold the lock.
        call: The call to make.
        timeout: Seconds to wait for the lock; 0: never wait.
        take: Locks a descriptor if it is free; the default is `lock_if_free`.

    Returns:
        Whether the lock was taken and the call made. False if this thread holds the lock already.
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
            # If another thread has begun to fork, the child may have this file without knowing it, and would
            # keep the lock.
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
    except ValueError:
        if not file.closed:
            raise  # a signal handler raised it
        # A signal handler forked, and this is the child.
        raise files.ForkedError(ECANCELED, "only the parent process continues", path) from None


def _unlock(file: FileIO) -> None:
    """Release the lock explicitly: a process that is being started may have a copy of the file."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
    except (OSError, ValueError) as error:
        # A forked child closed the file, or a program that closes unknown descriptors did.
        if not file.closed and getattr(error, "errno", None) is None:
            raise  # a signal handler raised it


def holds(path: str) -> bool:
    """Whether this thread is in `hold` of the path. Signal handlers and finalizers may call this."""
    file = _files.get((path, get_ident()))
    return file is not None and not file.closed


def still_holds(path: str) -> bool:
    """Whether this thread is in `hold` of the path, and the lock's file was not removed meanwhile."""
    file = _files.get((path, get_ident()))
    return file is not None and not file.closed and is_at(path, file.fileno())


class FileLock:
    """The same lock as `hold` takes, held beyond one call. Only one thread at a time may use an object."""

    _fd: int | None = None

    def __init__(self, path: str, take: Callable[[int], bool] | None = None) -> None:
        """Create a lock, not taken yet. `take` locks an open file if it is free; default: `lock_if_free`."""
        self._take = take or lock_if_free
        self._inode: tuple[int, int] | None = None
        self._pid = 0
        self.path = path

    def acquire(self, timeout: float = 0.0) -> bool:
        """Take the lock within `timeout` seconds (0: only if it is free now). Return whether it was taken."""
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
        # Set the attribute before locking: after an interrupt, `release` finds and closes the descriptor.
        self._fd = files.open_private(self.path, os.O_RDWR | os.O_CREAT)
        self._inode, self._pid = files.inode_of(self._fd), os.getpid()
        _descriptors[self._fd] = self._inode
        # If another thread has begun to fork, the child may have this descriptor without knowing it, and
        # would keep the lock.
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
        """Whether this object holds the lock in this process, and the lock keeps others out.

        False if the file was removed: the next process creates a new file, and gets its lock.
        """
        return self._fd is not None and self._is_ours() and is_at(self.path, self._fd)

    def _is_ours(self) -> bool:
        """Whether the descriptor is still ours. A program may close it, and reuse its number."""
        return self._fd is not None and self._pid == os.getpid() and files.inode_of(self._fd) == self._inode

    def release(self) -> None:
        """Release the lock. Does nothing in a forked child, whose copy is closed already."""
        if self._fd is None:
            return
        is_ours, fd = self._is_ours(), self._fd
        if is_ours:
            try:
                fcntl.flock(fd, fcntl.LOCK_UN)
            except OSError:
                pass  # closing the file releases the lock, too
        self._fd = None  # reset before the close, after which another file may get the number
        if self._pid == os.getpid():
            _descriptors.pop(fd, None)
        if is_ours:
            os.close(fd)

    def __del__(self) -> None:
        self.release()


def lock_if_free(fd: int) -> bool:
    """Take an exclusive lock on an open file if it is free. Closing the last copy of the file releases it.

    The package filelock takes the same lock. This function avoids its import, which takes twice as long as
    starting Python: a record that has no room needs a lock.
    """
    return _lock_if_free(fd, fcntl.LOCK_EX)


def is_free(fd: int) -> bool:
    """Whether no process has the exclusive lock on an open file.

    This takes a shared lock until the file is closed. With an exclusive one, a process that asks would seem
    to be the one that another process asks about.
    """
    return _lock_if_free(fd, fcntl.LOCK_SH)


def _lock_if_free(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (EAGAIN, EACCES):
            return False
        raise
    return True


def locks() -> dict[str, list[int]]:
    """Return the pids with exclusive locks, by device and inode of the file, according to /proc/locks."""
    found: dict[str, list[int]] = {}
    try:
        lines = files.read("/proc/locks").decode().splitlines()
    except OSError:
        return found
    for line in lines:
        # `1: FLOCK  ADVISORY  WRITE 4242 fe:00:131 0 EOF`; a waiter's line has `->` after the number.
        fields = line.split()
        if fields[1] == "FLOCK" and fields[3] == "WRITE":  # who has a shared lock only asks: see `is_free`
            pids = found.setdefault(fields[5], [])
            pid = int(fields[4])
            if pid not in pids:  # while locks come and go, /proc/locks may show a line twice
                pids.append(pid)
    return found


def holders(path: str, known: dict[str, list[int]] | None = None) -> list[int]:
    """List the pids with the exclusive lock on `path`, according to `known`; None: according to `locks`."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return (locks() if known is None else known).get(device, [])


def is_held(path: str) -> bool:
    """Whether a process holds the lock of an owner, who has written a line into the file."""
    if holders(path):
        return True
    # A dead owner leaves its line, too. The lock tells it from a living owner in another pid namespace.
    try:
        return os.stat(path).st_size > 0 and is_locked(path)
    except OSError:
        return False


def is_locked(path: str) -> bool:
    """Whether the lock is taken, in whatever pid namespace; False if that cannot be found out.

    For this moment, others cannot take the lock, but can ask as well.
    """
    try:
        fd = files.open_private(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not is_free(fd)
    finally:
        os.close(fd)


def is_at(path: str, fd: int) -> bool:
    """Whether an open file is the file at the path. False if it was removed or replaced."""
    inode = files.inode_of(fd)
    return inode is not None and files.is_there(path, inode)


@fork.after_in_child("locks")
def _release_locks() -> None:
    for file in list(_files.values()):
        try:
            file.close()
        except OSError:
            pass  # the program closed it
    _files.clear()
    for fd, inode in list(_descriptors.items()):
        if inode == files.inode_of(fd):  # otherwise it is closed, and another file may have the number
            os.close(fd)
        _descriptors.pop(fd, None)
