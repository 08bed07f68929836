"""Stores: where sites share their states, and how a URL names one."""

from __future__ import annotations

import os
from typing import Protocol

from m31a_mp.sharing.address import check_url, directory_of, is_server, shown_url
from m31a_mp.sharing.directory import DirectoryStore
from m31a_mp.sharing.state import Header, State
from m31a_mp.system.log import warn


class Store(Protocol):
    """A place for the latest state of each site of each session.

    A state is replaced only by one with a greater number. Every method raises `StoreError` if the store
    cannot be reached or refuses: within seconds, or the time that a slow line needs for large states.

    Attributes:
        url: The store's URL, without a password.
    """

    url: str

    def put(self, session_id: str, state: State) -> Header | None:
        """Store a state, unless there is a newer one, or another one with its number.

        Returns:
            None if the state is stored; otherwise the header of the state that is there.
        """

    def headers(self, session_id: str) -> dict[str, Header | str]:
        """Return the header of each site's state. A text says why a state cannot be used.

        A header may be the same object as in the last result if it did not change.
        """

    def get(self, session_id: str, sites: list[str]) -> dict[str, bytes]:
        """Return the bytes of the states of these sites. A state that is gone is left out."""

    def sessions(self) -> list[str]:
        """Return the ids of the sessions that sites have shared, in alphabetical order."""

    def close(self) -> None:
        """Close connections. The next call connects again."""


def store_url(given: str | os.PathLike[str] | None, otherwise: str | None) -> str | None:
    """Return the checked URL of the store to share in; None for none.

    Args:
        given: The caller's choice; None if there is none.
        otherwise: The choice of the environment. If it is wrong, there is a warning, and nothing is shared:
            the program must run all the same.

    Raises:
        TypeError, ValueError, ImportError: `given` is wrong; see `open_store`.
    """
    if given is not None:
        url = check_url(given)
        open_store(url)  # connects to nothing, but finds out what is wrong
        return url
    try:
        return check_url(otherwise) if otherwise else None
    except ValueError as error:
        warn("M31A_MP_SHARE: %s; nothing is shared", error)
        return None


def open_store(url: str) -> Store:
    """Return the store of a URL. Nothing is read, written or connected yet.

    Args:
        url: `redis://`, `rediss://` or `unix://` as redis-py takes them; `valkey://` for `redis://`, `valkeys://`
            for `rediss://`; `file:///DIRECTORY`; or the path of a directory.

    Raises:
        TypeError: The URL is not a string.
        ValueError: The URL names no store. The message has no password.
        ImportError: The URL names a server, and the package `redis` is not installed.
    """
    url = check_url(url)
    if is_server(url):
        try:
            from m31a_mp.sharing.server import ServerStore  # a directory needs no redis  # noqa: PLC0415
        except ModuleNotFoundError as error:
            if error.name != "redis":
                raise
            raise ImportError(
                f"{shown_url(url)} needs the package redis: pip install 'm31a_mp[redis]'", name="redis"
            ) from None
        return ServerStore(url)
    return DirectoryStore(directory_of(url))
