"""A session on disk: its directory and the paths in it."""

from __future__ import annotations

import os
import stat
from errno import ENOENT

from m31a_mp.errors import MetricsError
from m31a_mp.system import files

MAX_ID_BYTES = 200

# The largest distance of a waiting journal's number from the last folded one. A journal beyond it was
# planted: numbers that continue from there would run out. The distance leaves room for a restart of the count
# at the tenths of a second since 1970 (compactor.py).
MAX_WAITING = 10**11
MAX_JOURNAL = 10**12 - 1 - MAX_WAITING


class Session:
    """One session: its id, and the paths of its directory and files. The constructor accesses no files.

    Paths are plain strings: importing `pathlib` takes half as long as starting Python.

    Attributes:
        id: The id.
        root: The absolute path of the directory.
        journal, journal_lock, segments, metrics, rejected, owner_lock, sharing_lock: Paths in the directory.
    """

    __slots__ = (
        "id",
        "journal",
        "journal_lock",
        "metrics",
        "owner_lock",
        "rejected",
        "root",
        "segments",
        "sharing_lock",
    )

    def __init__(self, session_id: str, root: str) -> None:
        self.id = session_id
        self.root = root
        self.journal = f"{root}/journal.ndjson"
        self.journal_lock = f"{root}/journal.lock"
        self.segments = f"{root}/segments"
        self.metrics = f"{root}/metrics.json"
        self.rejected = f"{root}/journal.rejected.ndjson"
        self.owner_lock = f"{root}/owner.lock"
        self.sharing_lock = f"{root}/sharing.lock"

    @classmethod
    def named(cls, session_id: str, sessions_dir: str | os.PathLike[str]) -> Session:
        """Return the session with this id in this directory. A relative directory is resolved now.

        Raises:
            TypeError: The id is not a string, or the directory not a path.
            ValueError: The id is not one path component of at most 200 bytes of UTF-8.
        """
        session_id = check_session_id(session_id)
        return cls(session_id, os.path.join(os.path.abspath(_path(sessions_dir)), session_id))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Session) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    def __reduce__(self) -> tuple[object, ...]:
        return Session, (self.id, self.root)

    def __repr__(self) -> str:
        return f"<Session {self.root}>"

    @property
    def sessions_dir(self) -> str:
        """The directory of the sessions."""
        return os.path.dirname(self.root)

    def sealed_as(self, number: int) -> str:
        """Return the path of the journal that is sealed as `number`."""
        return f"{self.root}/journal.{number:012d}.ndjson"

    def sealed(self) -> list[tuple[int, str]]:
        """List the numbers and paths of the sealed journals, oldest first. They wait for fold or deletion."""
        names = sorted(self._names())
        return [(int(name[8:20]), f"{self.root}/{name}") for name in names if _is_sealed_name(name)]

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.root)
        except FileNotFoundError:
            return []

    def name_of(self, path: str) -> str:
        """Return the path relative to the session's directory."""
        return path.removeprefix(f"{self.root}/")

    def exists(self) -> bool:
        """Whether the directory exists."""
        return _is_directory(self.root)

    def is_there(self) -> bool:
        """Whether the directory exists and contains a file of a session. Otherwise it is no session.

        Raises:
            OSError: The directory cannot be listed.
        """
        signs = (self.journal, self.journal_lock, self.segments, self.metrics, self.owner_lock)
        if not self.exists():
            return False
        # Without the permission to reach a file, lexists() says that it is not there. The listing names it
        # all the same, or raises.
        return any(map(os.path.lexists, signs)) or any(
            _is_sealed_name(name) or f"{self.root}/{name}" in signs for name in self._names()
        )

    def must_be_there(self) -> None:
        """Raise unless the session exists.

        Raises:
            FileNotFoundError: There is no such session.
            OSError: The directory cannot be listed.
        """
        if not self.is_there():
            raise FileNotFoundError(ENOENT, "there is no session of that name", self.root)

    def make(self) -> None:
        """Make the directories, and missing ones above them, with mode 0700. Existing ones stay as they are.

        Raises:
            MetricsError: The session's name belongs to something that is not a directory.
            OSError: A directory could not be made.
        """
        for directory in (self.root, self.segments):
            files.make_directories(directory)
            if not stat.S_ISDIR(os.lstat(directory).st_mode):  # a symlink to a directory is refused, too
                raise MetricsError(f"{directory} is not a directory; a session needs its own", directory)


def check_session_id(session_id: str) -> str:
    """Return the id if it is one path component; otherwise raise."""
    if not isinstance(session_id, str):
        raise TypeError(f"session_id must be a str, not {type(session_id).__name__}")
    try:
        size = len(session_id.encode())
    except UnicodeEncodeError:
        raise ValueError(f"session_id {session_id!r} cannot be encoded as UTF-8") from None
    if session_id in ("", ".", "..") or "/" in session_id or "\\" in session_id or "\0" in session_id:
        raise ValueError(
            f"session_id {session_id!r} must be one path component: not empty, '.' or '..', "
            "and without '/', '\\' and NUL"
        )
    if size > MAX_ID_BYTES:
        raise ValueError(f"session_id has {size} bytes of UTF-8; at most {MAX_ID_BYTES} are allowed")
    return str.__str__(session_id)


def is_session_id(name: str) -> bool:
    """Whether a name can be the id of a session."""
    try:
        check_session_id(name)
    except ValueError:
        return False
    return True


def _is_sealed_name(name: str) -> bool:
    number = name[8:20]
    return name == f"journal.{number}.ndjson" and len(number) == 12 and number.isascii() and number.isdigit()  # noqa: PLR2004


def _is_directory(path: str) -> bool:
    """Whether the path is a directory itself. A symlink, which may be planted, does not count."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def is_file(path: str) -> bool:
    """Whether the path is an existing regular file itself. A symlink does not count."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _path(value: str | os.PathLike[str]) -> str:
    path = os.fspath(value) if isinstance(value, str) or hasattr(value, "__fspath__") else None
    if not isinstance(path, str):
        raise TypeError(f"sessions_dir must be a path, not {type(value).__name__}")
    return path
