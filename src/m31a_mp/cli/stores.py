"""Sessions in a store that sites share in, for the option `--from`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from m31a_mp.cli.arguments import complete_directory
from m31a_mp.cli.naming import TroubleError, shell_words
from m31a_mp.recorder import SESSION_VARIABLE, SHARE_VARIABLE
from m31a_mp.sharing.address import shown_url
from m31a_mp.sharing.gather import Gathering
from m31a_mp.sharing.store import Store, open_store

Function = TypeVar("Function", bound=Callable[..., Any])

from_option = click.option(
    "--from",
    "url",
    metavar="URL",
    shell_complete=complete_directory,
    help="Add up all sites that share in this store: redis://..., valkey://..., or a directory.",
)


def store_of(url: str) -> Store:
    """Return the store of a URL. A wrong URL is wrong usage."""
    try:
        return open_store(url)
    except ValueError as error:
        raise TroubleError(str(error), "m31a-mp gather --help", status=2) from None
    except ImportError as error:
        raise TroubleError(str(error), "pip install 'm31a_mp[redis]'", status=2) from None


def gathering_of(session_id: str, url: str) -> Gathering:
    """Return a gathering of a session. A wrong URL is wrong usage."""
    store_of(url)
    return Gathering(session_id, url)


def gathered_in(named: str | None, url: str) -> tuple[str, Gathering]:
    """Return the id of a session in a store, and its gathering."""
    session_id = session_in(named, url)
    return session_id, gathering_of(session_id, url)


def wanted_store(url: str | None, option: str) -> str:
    """Return the URL of an option, by default that of the environment."""
    found = url or os.environ.get(SHARE_VARIABLE)
    if not found:
        raise TroubleError(
            f"no store is named, and {SHARE_VARIABLE} is not set",
            f"{option} redis://HOST, or {option} DIRECTORY",
            status=2,
        )
    return found


def session_in(named: str | None, url: str) -> str:
    """Return the id of a session that is named by its id or its directory; by default the only one there."""
    named = named or os.environ.get(SESSION_VARIABLE)
    if named:
        return os.path.basename(os.path.normpath(named))
    store = store_of(url)
    try:
        ids = store.sessions()
    finally:
        store.close()
    if len(ids) == 1:
        return ids[0]
    what = f"{len(ids):,} sessions are shared there" if ids else "no session is shared there"
    raise TroubleError(
        f"{what}, and none is named", f"m31a-mp ls --from {shell_words(shown_url(url))}", status=2
    )
