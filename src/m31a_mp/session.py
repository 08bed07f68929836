"""A session on disk: its directory, the names in it, and the lease of its owner."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import orjson

from m31a_mp import durable, process
from m31a_mp.errors import MetricsError, SessionOwnedError
from m31a_mp.lock import FileLock, holders

MAX_ID_BYTES = 200

# Whoever only saves or compacts owns a session for moments; an owner, for as long as it lives.
_LEASE_SECONDS = 0.5

_OWNER_BYTES = 4096

_SEALED = re.compile(r"journal\.(\d{12})\.ndjson")
# So many journals never wait at once: a number further on was planted. Counting on from that one, the
# numbers would run out.
MAX_WAITING = 10**9
MAX_JOURNAL = 10**12 - 1 - MAX_WAITING


@dataclass(frozen=True)
class Session:
    """One session: where it is. Making the object touches nothing."""

    id: str
    sessions_dir: Path

    @classmethod
    def named(cls, session_id: str, sessions_dir: str | os.PathLike[str]) -> Session:
        """The session of that id in that directory; relative directories are resolved now.

        Raises:
            TypeError: The id is no string, or the directory no path.
            ValueError: The id is not one path component of at most 200 bytes of UTF-8.
        """
        return cls(check_session_id(session_id), Path(os.path.abspath(_path(sessions_dir))))

    @cached_property
    def directory(self) -> Path:
        return self.sessions_dir / self.id

    @cached_property
    def metrics(self) -> Path:
        return self.directory / "metrics.json"

    @cached_property
    def journal(self) -> Path:
        return self.directory / "journal.ndjson"

    @cached_property
    def journal_lock(self) -> Path:
        return self.directory / "journal.lock"

    @cached_property
    def rejected(self) -> Path:
        return self.directory / "journal.rejected.ndjson"

    @cached_property
    def segments(self) -> Path:
        return self.directory / "segments"

    @cached_property
    def owner_lock(self) -> Path:
        return self.directory / "owner.lock"

    def sealed_name(self, number: int) -> Path:
        """Where the journal goes that is sealed as `number`."""
        return self.directory / f"journal.{number:012d}.ndjson"

    def sealed(self) -> list[tuple[int, Path]]:
        """The sealed journals that wait to be folded or deleted, oldest first."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        matches = filter(None, map(_SEALED.fullmatch, names))
        return sorted((int(match[1]), self.directory / match[0]) for match in matches)

    def exists(self) -> bool:
        """Whether the directory is there."""
        return _is_directory(self.directory)

    def make(self) -> None:
        """Make the directories, 0700 each; those that exist are left as they are.

        Raises:
            MetricsError: Something that is no directory has the session's name.
            OSError: They could not be made.
        """
        if not self.exists():
            self.sessions_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for directory in (self.directory, self.segments):
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


def _is_directory(path: Path) -> bool:
    """Whether it is one itself; a symlink that somebody planted is not."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
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


class Lease:
    """The exclusive right to compact a session, held through `owner.lock`.

    The kernel gives it back when the process dies, however it dies. What is written in the file only tells
    people who it is: an owner that crashed leaves its line there, one that stopped leaves the file empty.
    """

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock
        line = orjson.dumps({"pid": os.getpid(), "started_at": process.start_time(os.getpid())}) + b"\n"
        # One short write, then the cut: whoever reads without the lock finds one line or the other.
        with durable.step("take lease"):
            os.pwrite(lock.fd, line, 0)
            os.ftruncate(lock.fd, len(line))

    @classmethod
    def take(cls, session: Session) -> Lease:
        """Become the owner of a session whose directory exists.

        Raises:
            SessionOwnedError: Another owner lives, perhaps in this process.
        """
        lease = cls.take_if_free(session, _LEASE_SECONDS)
        if lease is None:
            raise _owned_error(session)
        return lease

    @classmethod
    def take_if_free(cls, session: Session, timeout: float = 0.0) -> Lease | None:
        """Become the owner unless there is one, for all of `timeout` seconds."""
        lock = FileLock(session.owner_lock)
        if not lock.acquire(timeout):
            return None
        try:
            return cls(lock)
        except BaseException:
            lock.release()
            raise

    @property
    def held(self) -> bool:
        """Whether this process holds it (a forked child does not)."""
        return self._lock.held

    def release(self) -> None:
        """Give it back; once more is harmless."""
        if self.held:
            with durable.step("give back lease"):
                with suppress(OSError):
                    os.ftruncate(self._lock.fd, 0)
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _owned_error(session: Session) -> SessionOwnedError:
    owner = _read_owner(session.owner_lock)
    pids = holders(session.owner_lock)
    pid = pids[0] if pids else owner.get("pid")
    if not isinstance(pid, int):
        pid = None
    started_at = owner.get("started_at") if pid == owner.get("pid") else None
    who = process.describe(pid) if pid else "another process"
    since = f", started {started_at}" if started_at else ""
    return SessionOwnedError(
        f"session {session.id!r} is owned by {who}{since}; record into it with attach(), "
        "or stop its owner first",
        session.owner_lock,
        pid,
        started_at if isinstance(started_at, str) else None,
    )


def _read_owner(path: Path) -> dict[str, object]:
    try:
        content = orjson.loads(durable.read_private(path, _OWNER_BYTES))
    except (OSError, orjson.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
