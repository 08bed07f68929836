"""Sessions in a store that sites share in, for the option `--from`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from m31a_mp.cli.arguments import complete_directory
from m31a_mp.cli.extras import missing
from m31a_mp.cli.naming import TroubleError, shell_words
from m31a_mp.recorder import SESSION_VARIABLE, SHARE_VARIABLE
from m31a_mp.sharing.address import shown_url
from m31a_mp.sharing.gather import Gathering
from m31a_mp.sharing.store import Store, open_store

Function = TypeVar("Function", bound=Callable[..., Any])


def store_option(name: str, text: str) -> Callable[[Function], Function]:
    """Return an option that names a store.

    Args:
        name: The name of the option.
        text: What the option does, for the help.
    """
    return click.option(
        name, "url", metavar="URL", shell_complete=complete_directory, callback=_not_empty, help=text
    )


def _not_empty(_context: click.Context, _parameter: click.Parameter, url: str | None) -> str | None:
    """Refuse an empty URL: `--from "$STORE"` without that variable must not show something else."""
    if url == "":
        raise click.BadParameter("the URL is empty")
    return url


KINDS_OF_STORES = "redis://..., valkey://..., or a directory"

from_option = store_option("--from", f"Add up all sites that share in this store: {KINDS_OF_STORES}.")


def store_of(url: str) -> Store:
    """Return the store of a URL. A wrong URL is wrong usage."""
    try:
        return open_store(url)
    except ValueError as error:
        hint = f"{click.get_current_context().command_path} --help"
        raise TroubleError(str(error), hint, status=2) from None
    except ImportError as error:
        raise missing(error, "redis>=6") from None


def gathering_of(session_id: str, url: str) -> Gathering:
    """Return a gathering of a session. A wrong URL is wrong usage."""
    store_of(url)
    return Gathering(session_id, url)


def gathered_in(named: str | None, url: str) -> tuple[str, Gathering]:
    """Return the id of a session in a store, and its gathering."""
    session_id = session_in(named, url)
    return session_id, gathering_of(session_id, url)


@contextmanager
def telling_what_is_shared(url: str) -> Iterator[None]:
    """If the session is not in the store, hint at the command that lists those that are."""
    try:
        yield
    except FileNotFoundError as error:
        raise TroubleError(f"{error.filename}: {error.strerror}", _list_command(url)) from None


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
    raise TroubleError(f"{what}, and none is named", _list_command(url), status=2)


def _list_command(url: str) -> str:
    return f"m31a-mp ls --from {shell_words(shown_url(url))}"
