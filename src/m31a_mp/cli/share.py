"""`m31a-mp share`: share a session with other machines."""

from __future__ import annotations

import signal
import time

import click

from m31a_mp.cli import SIGNAL_BASE
from m31a_mp.cli.arguments import interval_option, session_argument
from m31a_mp.cli.naming import TroubleError, existing_or_latest, path_word, shell_words
from m31a_mp.cli.program import tell
from m31a_mp.cli.stores import KINDS_OF_STORES, store_of, store_option, wanted_store
from m31a_mp.cli.waiting import SignalPipe, stop_until_continued
from m31a_mp.errors import MetricsError
from m31a_mp.inspection.status import live_writers, owner_of
from m31a_mp.recorder import SHARE_VARIABLE
from m31a_mp.session.paths import Session
from m31a_mp.sharing.merging import Merging
from m31a_mp.sharing.sharer import Sharer, Sharing
from m31a_mp.system.log import reason_of, shown

_EPILOG = """\
\b
Examples:
  m31a-mp share sessions/demo --to redis://cache:6379 &
  m31a-mp share --once sessions/demo --to /mnt/shared/metrics

Runs beside the programs that record. While the session has no owner, share
merges it; otherwise it shares what the owner merges. It goes on until Ctrl-C,
and then shares once more. Gather with m31a-mp show --from URL. All users see
a command line: set $M31A_MP_SHARE instead if the URL has a password.
"""

_ENDS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_LAST_SECONDS = 5.0  # the longest wait for the store at the end


@click.command("share", epilog=_EPILOG)
@session_argument
@store_option("--to", f"The store: {KINDS_OF_STORES}, made if it is not there. By default ${SHARE_VARIABLE}.")
@click.option("--once", is_flag=True, help="Merge if there is no owner, share, and end.")
@interval_option("Time between merges.")
def command(directory: str | None, url: str | None, once: bool, interval: float) -> int:
    """Share a session in a store, where others gather it."""
    session = existing_or_latest(directory, "m31a-mp share")
    url = wanted_store(url, "--to")
    store = store_of(url)
    if once:
        return _share_once(session, Sharing(session, store))
    with SignalPipe(_ENDS | {signal.SIGTSTP}) as pipe:
        tell(f"sharing {session.root} with {store.url}")
        return _share_until_signal(session, Sharer(session, url), interval, pipe)


def _share_once(session: Session, sharing: Sharing) -> int:
    _TellingMerging(session).merge()
    has_ended = _has_ended(session)
    try:
        sharing.share(again=True, has_ended=has_ended)
    except MetricsError:
        if not sharing.is_refused:
            raise
        _TellingMerging(session).merge()  # which gives the state another number
        sharing.share(again=True, has_ended=has_ended)
    finally:
        sharing.close()
    click.echo(f"{shown(session.root)}: shared with {shown(sharing.url)}")
    return 0


def _share_until_signal(session: Session, sharer: Sharer, interval: float, pipe: SignalPipe) -> int:
    merging = _TellingMerging(session)
    ended: list[int] = []
    while not ended:
        merging.merge(anew=sharer.is_refused)
        sharer.wake()
        numbers, _ = pipe.wait(interval)
        if signal.SIGTSTP in numbers:
            stop_until_continued()
        ended = sorted(_ENDS.intersection(numbers))
    merging.merge()
    if reason := sharer.share_now(time.monotonic() + _LAST_SECONDS, has_ended=_has_ended(session)):
        hint = f"m31a-mp share --once {path_word(session.root)} --to {shell_words(sharer.url)}"
        raise TroubleError(f"{session.root} is not shared to its last record: {reason}", hint)
    return 0 if ended[0] == signal.SIGINT else SIGNAL_BASE + ended[0]


def _has_ended(session: Session) -> bool:
    """Whether no process of the session lives, as far as can be seen."""
    return owner_of(session) is None and not live_writers(session)


class _TellingMerging:
    """Merges a session without an owner, and says once if that fails."""

    def __init__(self, session: Session) -> None:
        self._merging = Merging(session)
        self._is_told = False

    def merge(self, *, anew: bool = False) -> None:
        """See `Merging.merge`."""
        try:
            self._merging.merge(anew=anew)
            self._is_told = False
        except (MetricsError, OSError) as error:
            if not self._is_told:
                tell(f"not merged now: {reason_of(error)}")
            self._is_told = True
