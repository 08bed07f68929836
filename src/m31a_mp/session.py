"""A session on disk: its directory, and the names in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from m31a_mp import durable
from m31a_mp.errors import MetricsError

MAX_ID_BYTES = 200

# So many journals never wait at once: a number further on was planted. Counting on from that one, the
# numbers would run out.
MAX_WAITING = 10**9
MAX_JOURNAL = 10**12 - 1 - MAX_WAITING


class Session:
    """One session: where it is. Making the object touches nothing.

    Attributes:
        id: Its id.
        root: Its directory, absolute.
        directory: The same as a path; what else there is are the files in it.
    """

    def __init__(self, session_id: str, root: str) -> None:
        # All at once: until Python 3.12 cached_property has a lock, and a fork while another thread is in it
        # would leave the child with one that nobody gives back.
        self.id = session_id
        self.root = root
        self.directory = Path(root)
        self.sessions_dir = self.directory.parent
        self.metrics = self.directory / "metrics.json"
        self.journal = self.directory / "journal.ndjson"
        self.journal_lock = self.directory / "journal.lock"
        self.rejected = self.directory / "journal.rejected.ndjson"
        self.segments = self.directory / "segments"
        self.owner_lock = self.directory / "owner.lock"

    @classmethod
    def named(cls, session_id: str, sessions_dir: str | os.PathLike[str]) -> Session:
        """The session of that id in that directory; relative directories are resolved now.

        Raises:
            TypeError: The id is no string, or the directory no path.
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

    def sealed_name(self, number: int) -> Path:
        """Where the journal goes that is sealed as `number`."""
        return self.directory / f"journal.{number:012d}.ndjson"

    def sealed(self) -> list[tuple[int, Path]]:
        """The sealed journals that wait to be folded or deleted, oldest first."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        numbers = (int(name[8:20]) for name in names if _is_sealed_name(name))
        return sorted((number, self.sealed_name(number)) for number in numbers)

    def exists(self) -> bool:
        """Whether the directory is there."""
        return _is_directory(self.root)

    def make(self) -> None:
        """Make the directories, 0700 each; those that exist are left as they are.

        Raises:
            MetricsError: Something that is no directory has the session's name.
            OSError: They could not be made.
        """
        if not self.exists():
            os.makedirs(os.path.dirname(self.root), 0o700, exist_ok=True)
        for directory in (self.root, f"{self.root}/segments"):
            durable.make_directory(directory)
            if not _is_directory(directory):
                raise MetricsError(f"{directory} is not a directory; a session needs its own", directory)


def check_session_id(session_id: str) -> str:
    """Return the id if it is one path component, else raise."""
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


def _is_sealed_name(name: str) -> bool:
    number = name[8:20]
    return name == f"journal.{number}.ndjson" and len(number) == 12 and number.isascii() and number.isdigit()  # noqa: PLR2004


def _is_directory(path: str) -> bool:
    """Whether it is one itself; a symlink that somebody planted is not."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def is_file(path: Path) -> bool:
    """Whether it is a regular one itself, and there."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _path(value: str | os.PathLike[str]) -> str:
    path = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError(f"sessions_dir must be a str or a path of one, not {type(value).__name__}")
    return path
