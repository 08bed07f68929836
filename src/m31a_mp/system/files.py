"""Bytes that reach the disk: whole writes, fsync, atomic replacement.

The only module that calls `os.fsync` and `os.replace`, so that the order of durable steps can be read
(and tested) in one place. Every step that changes a file is a named `step`, at either side of which a
test can end the process.
"""

from __future__ import annotations

import os
from _thread import _local, allocate_lock
from _weakref import ref
from errno import ECANCELED, EDQUOT, EFBIG, ENOSPC
from io import FileIO

from m31a_mp.system import fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


# Neither the umask nor a planted symlink decides where the bytes of a session go or who may read them.
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
_TEMPORARY = ".tmp"
FULL = (ENOSPC, EDQUOT)
"""The errors of a full disk."""
# O_NONBLOCK only matters where somebody planted a FIFO: opening one would wait for its other end.
_PRIVATE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def reached(point: str) -> None:
    """Called before and after every step. Does nothing, unless a test replaces it to crash there."""


class _Thread(_local):  # threading.local, without the rest of threading
    """The operations that a thread is in."""

    innermost: _Operation | None = None


_thread = _Thread()

# The files that are being changed, by descriptor. Of one that is closed the entry says nothing.
_changing: dict[int, ref[FileIO]] = {}


@fork.after_in_child("files")
def _change_nothing_here() -> None:
    for known in list(_changing.values()):
        file = known()
        if file and not file.closed:
            _make_harmless(file.fileno())
    _changing.clear()


def _make_harmless(fd: int) -> None:
    """Have a descriptor lead nowhere. It is not closed: a signal handler may get its number for a file."""
    with FileIO(os.devnull, "r+") as null:
        if null.fileno() == fd:
            return  # the program had closed it
        os.dup2(null.fileno(), fd, inheritable=False)


class ForkedError(OSError):
    """A signal handler forked in the middle of an operation: it is the parent's to go on with."""


class _Operation:
    """One operation of a thread. It is under way while its lock is held."""

    __slots__ = ("generation", "lock", "outer")

    def __init__(self, outer: _Operation | None) -> None:
        self.outer = outer
        self.generation = fork.generation
        self.lock = allocate_lock()


def operation(call: Callable[[], T]) -> T:
    """Make a call that takes several steps, which belong together.

    A signal handler may fork in the middle of them, and its child return from the handler. There the next
    step raises `ForkedError` instead of doing it once more.
    """
    fork.settle()
    this = _Operation(_under_way())
    _thread.innermost = this
    # The `with` of a lock is over when its block is, also where an exception of a signal handler comes into
    # its end: no Python code runs there.
    with this.lock:
        return call()


def _under_way() -> _Operation | None:
    """The innermost operation that this thread is in."""
    found = _thread.innermost
    while found and not found.lock.locked():
        found = found.outer
    return found


class step:  # noqa: N801  # reads as the function that it would be, at five times its speed
    """Around one change of the files, so that a crash right before and right after it can be tried."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        reached(f"before {self._name}")
        under_way = _under_way()
        # No call from here to the change itself: only behind one can a signal handler fork.
        if under_way and under_way.generation != fork.generation:
            raise ForkedError(ECANCELED, f"{self._name}: left to the parent process")

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            reached(f"after {self._name}")


def open_private(path: str, flags: int) -> int:
    """Open a file of the session: never through a symlink, and 0600 if this call creates it."""
    if not flags & os.O_CREAT:
        return os.open(path, flags | _PRIVATE)
    try:
        fd = os.open(path, flags | _PRIVATE | os.O_EXCL, _FILE_MODE)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
        return os.open(path, flags | _PRIVATE, _FILE_MODE)
    try:
        os.fchmod(fd, _FILE_MODE)  # a umask of 0277 would have made a file that its owner cannot write
    except BaseException:
        os.close(fd)
        raise
    return fd


def changing(fd: int) -> FileIO:
    """The file of a descriptor, for a `with` in which it is changed; a forked child changes nothing in it.

    Leaving the `with` closes the descriptor, wherever an exception of a signal handler comes.
    """
    file = FileIO(fd, "r+")
    _changing[fd] = ref(file)
    return file


def is_there(path: str, inode: tuple[int, int]) -> bool:
    """Whether the file of that device and inode is at that path; where that cannot be told, it is."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return (found.st_dev, found.st_ino) == inode


def inode_of(fd: int) -> tuple[int, int] | None:
    """The device and inode of an open file; None if the descriptor is none."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def read_private(path: str, limit: int) -> bytes:
    """The bytes of a file of the session; never through a symlink.

    Raises:
        OSError: It cannot be read, or has more than `limit` bytes (`EFBIG`).
    """
    with _opened(path, open_private(path, os.O_RDONLY)) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(EFBIG, f"more than {limit} bytes", path)
        return file.readall()


def read(path: str) -> bytes:
    """The bytes of a file of the system. Not by `open()`: at the interpreter's end, that is gone."""
    with _opened(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as file:
        return file.readall()


def _opened(path: str, fd: int) -> FileIO:
    try:
        return FileIO(fd)
    except OSError as error:  # a directory, of which the error has the descriptor only
        os.close(fd)
        raise OSError(error.errno, error.strerror, path) from None


def make_directory(path: str) -> None:
    """Make a directory with mode 0700 whatever the umask; one that exists is left as it is."""
    try:
        os.mkdir(path, _DIRECTORY_MODE)
    except FileExistsError:
        return
    os.chmod(path, _DIRECTORY_MODE)


def write_all(fd: int, data: bytes, offset: int = 0) -> None:
    """Write all of `data` at `offset`, or raise: a short write is how a full disk answers."""
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        more = os.pwrite(fd, data[written:], offset + written)
        if not more:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        written += more


def replace(path: str, data: bytes) -> None:
    """Put `data` at `path`: a reader, or the next boot, finds the old bytes or the new ones, whole.

    The caller makes sure that nobody else replaces the same path at the same time. When this raises, the
    new bytes may be there without being durable: only replacing them once more makes them so, for an
    fsync that failed says nothing when it is repeated.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}{_TEMPORARY}")
    with step(f"make temporary {name}"):
        delete_if_there(temporary)  # a crash left it, or somebody planted it; it is never followed
        fd = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with changing(fd):
            with step(f"write {name}"):
                write_all(fd, data)
            # Without it the rename may reach the disk before the bytes: an empty file after a power cut.
            with step(f"fsync {name}"):
                os.fsync(fd)
        with step(f"replace {name}"):
            os.replace(temporary, path)
    except BaseException:
        try:
            with step(f"give up temporary {name}"):
                os.unlink(temporary)
        except OSError:
            pass  # the next one that is made takes its place
        raise
    sync_directory(directory)


def delete_if_there(path: str) -> None:
    """Delete a file that may be gone."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def find(directory: str, prefix: str, suffix: str) -> list[str]:
    """The paths in a directory whose names begin and end like that; none if it is not there."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [f"{directory}/{name}" for name in names if name.startswith(prefix) and name.endswith(suffix)]


def delete_temporaries(directory: str, prefix: str) -> None:
    """Delete what crashes left of replacements, while nobody replaces a file of that prefix."""
    for path in find(directory, f".{prefix}", _TEMPORARY):
        with step("delete temporary"):
            delete_if_there(path)


# Files whose bytes the kernel may have given up, by device and inode, until they are written anew.
_given_up: set[tuple[int, int]] = set()


def sync(path: str) -> None:
    """Make the bytes and the name of a file durable that nobody appends to meanwhile; if it is there.

    Where an fsync fails, or did so earlier in this process, the bytes are written anew: the kernel may have
    given up those that it had, and another fsync of the same file would call them durable.
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
    """Make durable that there is a directory at `path`: its name, and those of the directories above it
    that may be as new, being on the same disk and readable.
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
