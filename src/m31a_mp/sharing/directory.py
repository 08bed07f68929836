"""A store in a directory: one file for each site, replaced by rename.

    <directory>/<session id>/<site id>.state

Each file has one writer, its site, so that no lock is needed. A network file system or a mounted object store
will do.
"""

from __future__ import annotations

import os
import stat
from errno import ENOTDIR
from typing import BinaryIO

from m31a_mp.errors import StoreError
from m31a_mp.metrics.site import check_id, is_id
from m31a_mp.session.paths import check_session_id, is_session_id
from m31a_mp.sharing.state import MAX_BYTES, MAX_HEADER_BYTES, BadStateError, Header, NewerStateError, State
from m31a_mp.system import files

_SUFFIX = ".state"


class DirectoryStore:
    """The states of sites as files. See `Store`."""

    def __init__(self, directory: str) -> None:
        self.url = directory
        self._tidied: set[str] = set()

    def put(self, session_id: str, state: State) -> Header | None:
        """See `Store.put`. Two processes of one site may both store; the next share repairs the order."""
        path = self._path(session_id, state.header.site)
        try:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            there = _replaceable_at(path)
            if there and is_refused(state.header, there):
                return there
            files.hand_out(path, state.data())
            if path not in self._tidied:  # listing the directory costs more than the share
                files.delete_handed_out(path)
                self._tidied.add(path)
        except OSError as error:
            raise self._error(error) from None
        except NewerStateError as error:
            raise StoreError(f"{path} is not replaced: {error}", self.url) from None
        return None

    def headers(self, session_id: str) -> dict[str, Header | str]:
        """See `Store.headers`."""
        found: dict[str, Header | str] = {}
        for name in self._names(session_id):
            site = name.removesuffix(_SUFFIX)
            if site == name or not is_id(site):
                continue
            try:
                found[site] = _header_at(self._path(session_id, site))
            except FileNotFoundError:
                continue
            except BadStateError as error:
                found[site] = str(error)
            except OSError as error:
                found[site] = f"its file cannot be read: {error.strerror or error}"  # another user's, perhaps
        return found

    def get(self, session_id: str, sites: list[str]) -> dict[str, bytes]:
        """See `Store.get`."""
        found = {}
        for site in sites:
            try:
                with _opened(self._path(session_id, site)) as stream:
                    found[site] = stream.read(MAX_BYTES + MAX_HEADER_BYTES)
            except (BadStateError, OSError):
                continue  # it changed since its header was read, and the next look says why
        return found

    def sessions(self) -> list[str]:
        """See `Store.sessions`."""
        try:
            names = sorted(os.listdir(self.url))
        except OSError as error:
            raise self._error(error) from None
        return [name for name in names if self._is_session(name)]

    def close(self) -> None:
        """Do nothing: nothing is open between two calls."""

    def _is_session(self, name: str) -> bool:
        """Whether a directory has states. Others, for instance `lost+found`, may not be readable."""
        try:
            return is_session_id(name) and any(found.endswith(_SUFFIX) for found in self._names(name))
        except StoreError:
            return False

    def _names(self, session_id: str) -> list[str]:
        try:
            return sorted(os.listdir(self._directory(session_id)))
        except (FileNotFoundError, NotADirectoryError):
            if os.path.isdir(self.url):
                return []
            raise self._error(NotADirectoryError(ENOTDIR, "there is no such directory", self.url)) from None
        except OSError as error:
            raise self._error(error) from None

    def _directory(self, session_id: str) -> str:
        return os.path.join(self.url, check_session_id(session_id))

    def _path(self, session_id: str, site: str) -> str:
        return os.path.join(self._directory(session_id), f"{check_id(site)}{_SUFFIX}")

    def _error(self, error: OSError) -> StoreError:
        reason = error.strerror or str(error)
        where = error.filename if isinstance(error.filename, str) else self.url
        return StoreError(f"{where}: {reason}", self.url)


def is_refused(new: Header, there: Header) -> bool:
    """Whether a state may not replace the one that is there."""
    return there.number > new.number or (there.number == new.number and there.crc32 != new.crc32)


def _replaceable_at(path: str) -> Header | None:
    """Return the header of the file to be replaced; None without a file, or with a damaged one.

    Raises:
        NewerStateError: A later version wrote the file.
        OSError: It cannot be read.
    """
    try:
        return _header_at(path)
    except NewerStateError:
        raise
    except (BadStateError, FileNotFoundError):
        return None


def _header_at(path: str) -> Header:
    with _opened(path) as stream:
        line = stream.readline(MAX_HEADER_BYTES)
        left = os.fstat(stream.fileno()).st_size - len(line)
    header = Header.parse(line)
    if header.size != left:
        raise BadStateError(f"it has {left} bytes after its header, not {header.size}")
    return header


def _opened(path: str) -> BinaryIO:
    """Open a file to read, never a FIFO, which could make the reader wait for ever.

    Raises:
        BadStateError: It is not a regular file.
        OSError: It cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    raise BadStateError("it is not a regular file")
