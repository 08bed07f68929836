"""`metrics.json`: the totals, and the checkpoint of the fold.

Both are in one file, so that one rename replaces both: in whatever step a process dies, the totals and the
checkpoint agree. The key `m31a_mp` holds everything that the Go program does not know.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from errno import EFBIG
from typing import Any, NamedTuple

import orjson

from m31a_mp.errors import DamagedMetricsError, UnsupportedVersionError
from m31a_mp.kinds import json
from m31a_mp.kinds.catalog import RUNNING, TABLES, TIMELINE
from m31a_mp.kinds.tables import Entries, fragment
from m31a_mp.metrics.beginning import identity
from m31a_mp.metrics.rejected import Rejected
from m31a_mp.metrics.site import Site, following
from m31a_mp.metrics.totals import CHECKPOINT_VERSION, Totals
from m31a_mp.model import ENTRIES, SessionMetrics, read
from m31a_mp.session.lease import owning
from m31a_mp.session.paths import MAX_JOURNAL, Session
from m31a_mp.system import files

_CHECKPOINT = "m31a_mp"
# More than the names, writers and numbers of the largest possible session (totals.py) take.
MAX_BYTES = 512 * 1024 * 1024


def load(sessions_dir: str | os.PathLike[str], session_id: str) -> SessionMetrics | None:
    """Load the metrics from a session's file. `Recorder.snapshot()` also sees newer records.

    Args:
        sessions_dir: The directory of the sessions.
        session_id: The session's id.

    Returns:
        The metrics; None if there is no `metrics.json`.

    Raises:
        DamagedMetricsError: The file is not valid; the message names the file and the place.
        UnsupportedVersionError: A newer version of this library wrote the file.
        OSError: The file cannot be read.
    """
    return read_metrics(Session.named(session_id, sessions_dir))


def save(sessions_dir: str | os.PathLike[str], session_id: str, metrics: SessionMetrics) -> None:
    """Replace the metrics of a session, atomically and durably. Uncounted records are added later.

    Args:
        sessions_dir: The directory of the sessions; made if it does not exist.
        session_id: The session's id.
        metrics: The new metrics.

    Raises:
        TypeError: `metrics` is not a SessionMetrics.
        ValueError: A field of `metrics` has an invalid value; the message names the field.
        SessionOwnedError: The session has a living owner, which would overwrite the file.
        DamagedMetricsError: The existing file is not valid.
        OSError: The file could not be written. The old file is still there.
    """
    session = Session.named(session_id, sessions_dir)
    if not isinstance(metrics, SessionMetrics):
        raise TypeError(f"metrics must be a SessionMetrics, not {type(metrics).__name__}")
    document = metrics.to_json()
    session.make()
    owning(session, lambda: _save(session, document))


def _save(session: Session, document: dict[str, Any]) -> None:
    old = _read(session) or {}
    if _CHECKPOINT in old:  # keep the checkpoint: new numbers do not change which records are counted
        document[_CHECKPOINT] = checkpoint = old[_CHECKPOINT]
        if site := read_site(old):
            checkpoint["site"] = following(site, session).kept()
    for name in ENTRIES.keys() & document.keys():
        document[name] = [_entry(entry) for entry in document[name]]
    files.sync_parents(session.root)
    files.replace(session.metrics, _encoded(document))


def read_metrics(session: Session) -> SessionMetrics | None:
    """Read the published metrics; None if there is no file.

    Raises:
        DamagedMetricsError: The file is not valid; the message names the file and the place.
        OSError: The file cannot be read.
    """
    document = _read(session)
    if document is None:
        return None
    return _with_rest(_shown(session, document), document.get(_CHECKPOINT) or {})


def read_file(path: str) -> SessionMetrics:
    """Read the metrics from any file in the format of `metrics.json`.

    Raises:
        DamagedMetricsError: The file does not have this format; the message names the place.
        UnsupportedVersionError: A later version of this library wrote the file.
        OSError: The file cannot be read.
    """
    with open(path, "rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    shown, checkpoint, _ = parse(data, path)  # a later merge needs a valid checkpoint
    return _with_rest(shown, checkpoint)


def parse(data: bytes, path: str) -> tuple[dict[str, Any], dict[str, Any], Totals]:
    """Parse the bytes of a `metrics.json`. `path` says in messages where they are from.

    Returns:
        The result of `model.read`, the checkpoint, and the totals.

    Raises:
        DamagedMetricsError, UnsupportedVersionError: See `read_file`.
    """

    def damaged(reason: str) -> DamagedMetricsError:
        return DamagedMetricsError(f"{path} has no metrics: {reason}", path, reason)

    if len(data) > MAX_BYTES:
        raise damaged(f"it has more than {MAX_BYTES} bytes")
    document = _parse(data, path, damaged)
    try:
        shown = read(document)
    except ValueError as error:
        raise damaged(str(error)) from None
    return shown, document.get(_CHECKPOINT) or {}, _restored(shown, document, damaged)


def read_totals(session: Session) -> Totals | None:
    """Read the totals and the checkpoint, to continue from them; None if there is no file.

    Raises:
        DamagedMetricsError, OSError: See `read_metrics`.
    """
    document = _read(session)
    if document is None:
        return None
    totals = _restored(_shown(session, document), document, lambda reason: _damaged(session, reason))
    if not 0 <= totals.journal <= MAX_JOURNAL:
        raise _damaged(session, f"its last journal cannot have been number {totals.journal}")
    return totals


def read_site(document: Any) -> Site | None:
    """Read the site from a parsed `metrics.json`; None if it has none, or no valid one."""
    try:
        return Site.restored(document[_CHECKPOINT]["site"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def set_aside_if_damaged(session: Session) -> Rejected | None:
    """Give a damaged `metrics.json` a second name, which keeps its bytes when the file is replaced.

    The name contains the time of the last change, so that a run after a crash chooses the same name.

    Returns:
        The item to report; None if the file is valid, or missing.

    Raises:
        UnsupportedVersionError: A later version wrote the file.
        OSError: The file cannot be read, or cannot get the name.
    """
    try:
        read_totals(session)
    except UnsupportedVersionError:
        raise
    except DamagedMetricsError as error:
        kept = f"{session.metrics}.{os.lstat(session.metrics).st_mtime_ns}.rejected"
        with suppress(FileExistsError), files.step("set metrics aside"):
            os.link(session.metrics, kept, follow_symlinks=False)
        return Rejected(session.name_of(kept), 0, f"merged records are only here: {error.reason}", b"")
    return None


class Published(NamedTuple):
    """The totals that `metrics.json` has, in memory: the next compaction need not read them.

    Attributes:
        totals: The totals. Whoever changes them publishes them again, or forgets this object.
        identity: The identity of the file.
    """

    totals: Totals
    identity: tuple[int, ...] | None

    def is_current(self, session: Session) -> bool:
        """Whether no other process has replaced, changed or removed the file since."""
        return identity(session) == self.identity


def publish(session: Session, totals: Totals) -> Published:
    """Replace the file. When this returns, the new file survives a power cut.

    Raises:
        OSError: The file could not be written. The old file is still there, whole.
    """
    totals.site = following(totals.site, session)
    files.replace(session.metrics, encoded(session.id, totals))
    return Published(totals, identity(session))


def encoded(session_id: str, totals: Totals) -> bytes:
    """Return the file's content. What did not change since the last call is not encoded again."""
    tables = {name: table for name, table in totals.tables.items() if isinstance(table, Entries)}
    document = totals.to_shown(session_id, but={*tables, RUNNING.name}).to_json()
    if running := totals.tables[RUNNING.name].encoded(_entry):
        document[RUNNING.name] = running
    checkpoint = totals.to_checkpoint(but=tables)
    for name, table in tables.items():
        shown, kept = table.encoded(_entry)
        if shown:
            document[name], checkpoint[name] = shown, kept
    document[_CHECKPOINT] = checkpoint
    return _encoded(document)


def _encoded(document: dict[str, Any]) -> bytes:
    # One line for each number of a timeline would make the file several times as long.
    for holder in (document, document.get(_CHECKPOINT, {})):
        if TIMELINE.name in holder:
            holder[TIMELINE.name] = fragment(holder[TIMELINE.name])
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _entry(entry: dict[str, Any]) -> orjson.Fragment:
    """Return the JSON of an entry as it stands in the file, a histogram in one line."""
    if "durations" in entry:
        entry["durations"] = fragment(entry["durations"])
    return orjson.Fragment(orjson.dumps(entry, option=orjson.OPT_INDENT_2).replace(b"\n", b"\n    "))


def _read(session: Session) -> dict[str, Any] | None:
    def damaged(reason: str) -> DamagedMetricsError:
        return _damaged(session, reason)

    try:
        data = files.read_private(session.metrics, MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != EFBIG:
            raise
        raise damaged(f"it has {error.strerror}") from None
    return _parse(data, session.metrics, damaged)


def _parse(data: bytes, path: str, damaged: Callable[[str], DamagedMetricsError]) -> dict[str, Any]:
    """Parse a file, and check that this version can read it. `damaged` makes an error from a reason."""
    try:
        document = json.parse(data)
    except orjson.JSONDecodeError as error:
        raise damaged(f"it is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise damaged("it is not a JSON object")
    checkpoint = document.get(_CHECKPOINT)
    if checkpoint is None:
        return document  # another program wrote it
    if not isinstance(checkpoint, dict):
        raise damaged(f"its part {_CHECKPOINT!r} is not an object")
    version = checkpoint.get("version")
    if type(version) is not int or version != CHECKPOINT_VERSION:
        reason = f"is of version {version!r}; this library reads {CHECKPOINT_VERSION}"
        message = f"{path} {reason}. Use the release that wrote it, or a later one"
        raise UnsupportedVersionError(message, path, reason)
    return document


def _shown(session: Session, document: dict[str, Any]) -> dict[str, Any]:
    try:
        return read(document)
    except ValueError as error:
        raise _damaged(session, str(error)) from None


def _restored(
    shown: dict[str, Any], document: dict[str, Any], damaged: Callable[[str], DamagedMetricsError]
) -> Totals:
    try:
        return Totals.restore(shown, document.get(_CHECKPOINT) or {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(f"its part {_CHECKPOINT!r} is not valid: {error!r}") from None


def _with_rest(shown: dict[str, Any], checkpoint: dict[str, Any]) -> SessionMetrics:
    metrics = SessionMetrics.of(shown)
    if checkpoint:
        metrics.rest = {name: kept for name, kept in checkpoint.items() if name in TABLES}
    return metrics


def _damaged(session: Session, reason: str) -> DamagedMetricsError:
    return DamagedMetricsError(
        f"{session.metrics} cannot be used: {reason}. Nothing is merged meanwhile. Restore the file from a "
        "copy; or compact(..., rebuild=True) sets it aside and starts again from zero",
        session.metrics,
        reason,
    )
