"""`m31a-mp ls`: the sessions in a directory."""

from __future__ import annotations

import os
from collections.abc import Callable

import click

from m31a_mp.cli import tables
from m31a_mp.cli.arguments import complete_directory, json_option
from m31a_mp.cli.naming import (
    DEFAULT_SESSIONS,
    USE_OTHER_RELEASE,
    USE_OTHER_USER,
    TroubleError,
    is_session_at,
    path_word,
    sessions_below,
    sessions_elsewhere,
    shared_at,
)
from m31a_mp.cli.progress import counting_progress
from m31a_mp.cli.stores import KINDS_OF_STORES, gathering_of, store_of, store_option
from m31a_mp.errors import DamagedMetricsError, MetricsError, UnsupportedVersionError
from m31a_mp.inspection.status import Status, sessions_in, status
from m31a_mp.recorder import SESSION_VARIABLE
from m31a_mp.session.paths import Session
from m31a_mp.system.log import reason_of, shown

_EPILOG = f"""\
\b
Examples:
  m31a-mp ls sessions
  m31a-mp ls sessions --json |
      jq '.sessions[] | select(.state == "not closed")'
  m31a-mp ls --from redis://cache

A session is running while its owner or a recording process lives. A session is
not closed if its owner ended without releasing it: `m31a-mp compact`, or the
next owner, merges the remaining records. Otherwise it is finished. DIRECTORY
defaults to that of the session in ${SESSION_VARIABLE}, else to ./{DEFAULT_SESSIONS}.
"""

_Row = Status | tables.Unreadable


@click.command("ls", epilog=_EPILOG)
@click.argument("directory", metavar="[DIRECTORY]", required=False, shell_complete=complete_directory)
@store_option("--from", f"List the sessions that sites share in this store: {KINDS_OF_STORES}.")
@json_option
def command(directory: str | None, url: str | None, as_json: bool) -> int:
    """List the sessions in a directory: state, owner, age, totals."""
    if url:
        if directory:
            raise click.UsageError("--from lists the sessions in a store; it takes no directory")
        return _list_gathered(url, as_json=as_json)
    sessions_dir = os.path.abspath(directory or _default())
    try:
        sessions = sessions_in(sessions_dir)
    except OSError as error:
        is_denied = isinstance(error, PermissionError)
        hint = USE_OTHER_USER if is_denied else sessions_elsewhere(sessions_dir, "m31a-mp ls")
        raise TroubleError(f"{sessions_dir}: {error.strerror}", hint) from None
    if not sessions and is_session_at(sessions_dir):
        raise TroubleError(
            f"{sessions_dir} is a session, not a directory of sessions",
            f"m31a-mp show {path_word(sessions_dir)}",
        )
    with counting_progress("looking", len(sessions)) as count:
        rows = [row for row in (_look(session, count) for session in sessions) if row]
    if as_json:
        listed = [_json(sessions_dir, row) for row in rows]
        tables.print_json({"directory": sessions_dir, "sessions": listed})
    elif rows:
        tables.list_view(rows).print()
    else:
        click.echo(f"no sessions in {shown(sessions_dir)}")
        if below := sessions_below(sessions_dir):
            click.echo(f"to list those one level down: {below}")
        elif store := shared_at(sessions_dir):
            click.echo(f"to look at what is shared there: {store}")
    return 1 if any(isinstance(row, tables.Unreadable) for row in rows) else 0


def _list_gathered(url: str, *, as_json: bool) -> int:
    """List the sessions in a store."""
    store = store_of(url)
    try:
        ids = store.sessions()
    finally:
        store.close()
    with counting_progress("gathering", len(ids)) as count:
        rows = [row for row in (_gather(session_id, url, count) for session_id in ids) if row]
    if as_json:
        tables.print_json({"store": store.url, "sessions": [tables.gathered_json(row) for row in rows]})
    elif rows:
        tables.gathered_list_view(rows).print()
    else:
        click.echo(f"no sessions in {shown(store.url)}")
    return 1 if any(tables.has_trouble(row) for row in rows) else 0


def _gather(session_id: str, url: str, count: Callable[[], None]) -> tables.Gathered | None:
    gathering = gathering_of(session_id, url)
    try:
        return tables.Gathered(session_id, gathering.look())
    except FileNotFoundError:
        return None  # expired meanwhile
    except (MetricsError, OSError) as error:
        return tables.Gathered(session_id, None, reason_of(error))
    finally:
        gathering.close()
        count()


def _default() -> str:
    session = os.environ.get(SESSION_VARIABLE)
    return os.path.dirname(os.path.abspath(session)) if session else DEFAULT_SESSIONS


def _look(session: Session, count: Callable[[], None]) -> _Row | None:
    try:
        return status(session)
    except FileNotFoundError:
        return None  # removed meanwhile
    except UnsupportedVersionError as error:
        return tables.Unreadable(
            session.id, "newer version", f"metrics.json {error.reason}; {USE_OTHER_RELEASE}"
        )
    except DamagedMetricsError as error:
        return tables.Unreadable(session.id, "damaged", error.reason)
    except (MetricsError, OSError) as error:
        return tables.Unreadable(session.id, "unreadable", reason_of(error))
    finally:
        count()


def _json(sessions_dir: str, row: _Row) -> dict[str, object]:
    if isinstance(row, Status):
        return tables.row_json(row)
    unknown = dict.fromkeys(("state", "owner", "started_at", "updated_at", "unmerged", "unshared", "totals"))
    return {"session": os.path.join(sessions_dir, row.name), **unknown, "error": row.reason}
