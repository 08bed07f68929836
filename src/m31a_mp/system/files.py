"""Bytes that reach the disk: whole writes, fsync, atomic replacement.

Only this module calls `os.fsync` and `os.replace`, so that the order of durable steps can be read and tested
in one place. Every change of a file is a named `step`. A test can end the process before and after each step.
"""

from __future__ import annotations

import os
from _thread import _local, allocate_lock
from _weakref import ref
from errno import ECANCELED, EDQUOT, EFBIG, ENOSPC
from io import FileIO
from resource import RLIM_INFINITY, RLIMIT_FSIZE, getrlimit
from time import time_ns

from m31a_mp.system import fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


# Fixed modes and O_NOFOLLOW: neither the umask nor a planted symlink decides who may read a session's bytes.
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
_TEMPORARY = ".tmp"
_ABANDONED_SECONDS = 60.0
FULL = (ENOSPC, EDQUOT)
"""The errors of a full disk."""
# O_NONBLOCK matters if a FIFO was planted: without the flag, the open would wait for the other end.
_PRIVATE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def reached(point: str) -> None:
    """Do nothing. Every step calls this before and after; a test replaces the function to crash there."""


class _Thread(_local):  # threading.local, without the rest of threading
    """The operations that a thread is running."""

    innermost: _Operation | None = None


_thread = _Thread()

# The files that are being changed, by descriptor. Entries of closed files have no meaning.
_changing: dict[int, ref[FileIO]] = {}


@fork.after_in_child("files")
def _detach_files() -> None:
    for known in list(_changing.values()):
        file = known()
        if file and not file.closed:
            _make_harmless(file.fileno())
    _changing.clear()


def _make_harmless(fd: int) -> None:
    """Point a descriptor to /dev/null. Closing it would free its number for a file of a signal handler."""
    with FileIO(os.devnull, "r+") as null:
        if null.fileno() == fd:
            return  # the program had closed the descriptor
        os.dup2(null.fileno(), fd, inheritable=False)


class ForkedError(OSError):
    """A signal handler forked in the middle of an operation. Only the parent continues it."""


class _Operation:
    """One operation of a thread. The operation is running while its lock is held."""

    __slots__ = ("generation", "lock", "outer")

    def __init__(self, outer: _Operation | None) -> None:
        self.outer = outer
        self.generation = fork.generation
        self.lock = allocate_lock()


def operation(call: Callable[[], T]) -> T:
    """Make a call that takes several steps, which belong together.

    A signal handler may fork during the call, and return in the child. In the child, the next step raises
    `ForkedError`: otherwise the parent and the child would both do the remaining steps.
    """
    fork.settle()
    this = _Operation(_under_way())
    _thread.innermost = this
    # The `with` of a lock runs no Python code at its end: an exception of a signal handler cannot keep the
    # lock held.
    with this.lock:
        return call()


def _under_way() -> _Operation | None:
    """Return the innermost operation that this thread is running."""
    found = _thread.innermost
    while found and not found.lock.locked():
        found = found.outer
    return found


class step:  # noqa: N801  # used like a function; a class takes a fifth of a contextmanager's time
    """Surrounds one change of the files, so that tests can crash directly before and after the change."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        reached(f"before {self._name}")
        under_way = _under_way()
        # No calls from here to the change: a signal handler, which may fork, runs only after a call.
        if under_way and under_way.generation != fork.generation:
            raise ForkedError(ECANCELED, f"{self._name}: only the parent process continues")

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            reached(f"after {self._name}")


def open_private(path: str, flags: int) -> int:
    """Open a file of the session, never through a symlink. A file that this call creates has mode 0600."""
    if not flags & os.O_EXCL:
        try:
            return os.open(path, flags & ~os.O_CREAT | _PRIVATE)  # mostly the file is there
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
    try:
        fd = os.open(path, flags | _PRIVATE | os.O_EXCL, _FILE_MODE)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
        return os.open(path, flags | _PRIVATE, _FILE_MODE)
    try:
        os.fchmod(fd, _FILE_MODE)  # with a umask of 0277, the owner of the file could not write it
    except BaseException:
        os.close(fd)
        raise
    return fd


def changing(fd: int) -> FileIO:
    """Return the file of a descriptor, for a `with` that changes it. A forked child cannot change the file.

    Leaving the `with` closes the descriptor, even if a signal handler raises at any point.
    """
    file = FileIO(fd, "r+")
    _changing[fd] = ref(file)
    return file


def is_there(path: str, inode: tuple[int, int]) -> bool:
    """Whether the path leads to the file with this device and inode; True if that cannot be checked."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno is None:  # a signal handler raised it
            raise
        return True
    return (found.st_dev, found.st_ino) == inode


def inode_of(fd: int) -> tuple[int, int] | None:
    """Return the device and inode of an open file; None if the descriptor is not open."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        if error.errno is None:  # a signal handler raised it
            raise
        return None
    return status.st_dev, status.st_ino


def read_private(path: str, limit: int) -> bytes:
    """Read a file of the session, never through a symlink.

    Raises:
        OSError: The file cannot be read, or has more than `limit` bytes (`EFBIG`).
    """
    with _opened(path, open_private(path, os.O_RDONLY)) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(EFBIG, f"more than {limit} bytes", path)
        return file.readall()


def read(path: str) -> bytes:
    """Read a file of the system. Not by `open()`, which is gone at the end of the interpreter."""
    with _opened(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as file:
        return file.readall()


def _opened(path: str, fd: int) -> FileIO:
    try:
        return FileIO(fd)
    except OSError as error:  # a directory; add the path, because the error names only the descriptor
        os.close(fd)
        raise OSError(error.errno, error.strerror, path) from None


def make_directory(path: str) -> None:
    """Make a directory with mode 0700, whatever the umask. An existing one stays as it is."""
    try:
        os.mkdir(path, _DIRECTORY_MODE)
    except FileExistsError:
        return
    os.chmod(path, _DIRECTORY_MODE)


def make_directories(path: str) -> None:
    """Make a directory, and the missing ones above it, as `make_directory` does.

    Not by `os.makedirs`, which may swallow an `OSError` that a signal handler raises in it.
    """
    try:
        make_directory(path)
    except FileNotFoundError as error:
        above = os.path.dirname(path)
        if error.errno is None or above == path:  # a signal handler raised the error, or nothing is above
            raise
        make_directories(above)
        make_directory(path)


def check_size(size: int) -> None:
    """Raise `EFBIG` if this process may not make files of that size. The kernel's signal could be fatal."""
    limit = getrlimit(RLIMIT_FSIZE)[0]
    if limit != RLIM_INFINITY and size > limit:
        raise OSError(EFBIG, f"this process may not make files of more than {limit} bytes")


def write_all(fd: int, data: bytes, offset: int = 0) -> None:
    """Write all of `data` at `offset`, or raise. A full disk may cause a short write instead of an error."""
    check_size(offset + len(data))
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        more = os.pwrite(fd, data[written:], offset + written)
        if not more:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        written += more


def replace(path: str, data: bytes) -> None:
    """Replace the file at `path` by `data`: a reader, or the next boot, finds all old bytes or all new ones.

    The caller ensures that no other thread or process replaces the same path at the same time. After an
    error, the new bytes may be there without being durable. Only another replacement makes them durable: a
    repeated fsync may succeed although the bytes were lost.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}{_TEMPORARY}")
    with step(f"make temporary {name}"):
        delete_if_there(temporary)  # a crash left the file, or it was planted; symlinks are not followed
        fd = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with changing(fd):
            with step(f"write {name}"):
                write_all(fd, data)
                # Before Linux 6.13, the kernel's times are those of its last tick, up to 10 ms old. A new
                # file may have the inode of one that was replaced in the same tick: both would look alike.
                now = time_ns()
                os.utime(fd, ns=(now, now))
            # Without the fsync, the rename may reach the disk first: an empty file after a power cut.
            with step(f"fsync {name}"):
                os.fsync(fd)
        with step(f"replace {name}"):
            os.replace(temporary, path)
    except BaseException:
        try:
            with step(f"give up temporary {name}"):
                os.unlink(temporary)
        except OSError:
            pass  # the next replacement deletes the temporary file
        raise
    sync_directory(directory)


def hand_out(path: str, data: bytes, *, is_precious: bool = True) -> None:
    """Replace a file by rename, for others to read. The new bytes need not survive a power cut.

    Unlike with `replace`, several processes may do this at the same time, and the file system need not know
    modes. After a power cut the file has all old or all new bytes, unless `is_precious` is false.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{os.getpid()}.{os.urandom(4).hex()}{_TEMPORARY}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    try:
        with FileIO(fd, "w"):
            write_all(fd, data)
            if is_precious:
                os.fsync(fd)  # otherwise the rename may reach the disk first
        os.replace(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass  # the store is gone
        raise


def delete_handed_out(path: str) -> None:
    """Delete the temporary files that processes left which were killed while they handed out a file.

    Another process may hand the file out just now: its temporary file is not a minute older than the file.
    """
    directory, name = os.path.split(path)
    try:
        newest = os.stat(path).st_mtime - _ABANDONED_SECONDS
        for temporary in find(directory, f".{name}.", _TEMPORARY):
            if os.lstat(temporary).st_mtime < newest:
                os.unlink(temporary)
    except OSError:
        pass  # the next process that hands the file out deletes the rest


def delete_if_there(path: str) -> None:
    """Delete a file. A missing file is no error."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def find(directory: str, prefix: str, suffix: str) -> list[str]:
    """List the paths in a directory whose names have this prefix and suffix; none without the directory."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [f"{directory}/{name}" for name in names if name.startswith(prefix) and name.endswith(suffix)]


def delete_temporaries(directory: str, prefix: str) -> None:
    """Delete temporary files that crashes left. The caller ensures that no such file is in use."""
    for path in find(directory, f".{prefix}", _TEMPORARY):
        with step("delete temporary"):
            delete_if_there(path)


# Files, by device and inode, whose unsynced bytes the kernel may have discarded after a failed fsync. An
# entry stays until the file is replaced.
_given_up: set[tuple[int, int]] = set()


def sync(path: str) -> None:
    """Make the bytes and the name of a file durable, if it exists. No process may append to it meanwhile.

    If an fsync fails, or failed earlier in this process, the file is replaced by a copy: the kernel may have
    discarded bytes, and another fsync of the same file would report success nevertheless.
    """
    try:
        fd = open_private(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    with open(fd, "rb") as stream:
        status = os.fstat(fd)
        file = status.st_dev, status.st_ino
        if file not in _given_up:
            try:
                with step(f"fsync {os.path.basename(path)}"):
                    os.fsync(fd)
            except OSError:
                _given_up.add(file)
        if file in _given_up:
            replace(path, stream.read())
            _given_up.discard(file)
        else:
            sync_directory(os.path.dirname(path))


def sync_parents(path: str) -> None:
    """Make the name of the directory `path` durable, and the names of the directories above it.

    They may be new, too. Directories on other disks and unreadable ones are left out.
    """
    device = os.stat(path).st_dev
    directory, below = os.path.dirname(path), path
    while directory != below and os.stat(directory).st_dev == device and os.access(directory, os.R_OK):
        sync_directory(directory)
        directory, below = os.path.dirname(directory), directory


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with step("fsync directory"):
            os.fsync(fd)
    finally:
        os.close(fd)
