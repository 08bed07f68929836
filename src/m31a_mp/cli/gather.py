"""`m31a-mp gather`: keep a gathered session on disk."""

from __future__ import annotations

import signal

import click

from m31a_mp.cli import SIGNAL_BASE
from m31a_mp.cli.arguments import complete_directory, interval_option, json_option
from m31a_mp.cli.found import Found
from m31a_mp.cli.naming import is_session_at
from m31a_mp.cli.outcome import NOT_ALL_WELL
from m31a_mp.cli.program import tell
from m31a_mp.cli.stores import (
    KINDS_OF_STORES,
    gathering_of,
    session_in,
    store_option,
    telling_what_is_shared,
    wanted_store,
)
from m31a_mp.cli.tables import print_json
from m31a_mp.cli.waiting import SignalPipe, stop_until_continued
from m31a_mp.errors import MetricsError
from m31a_mp.metrics.file import load
from m31a_mp.model import SessionMetrics
from m31a_mp.recorder import SHARE_VARIABLE
from m31a_mp.session.paths import Session
from m31a_mp.sharing.into import GatheredSession
from m31a_mp.system.log import reason_of, shown
from m31a_mp.wording import count

_EPILOG = """\
\b
Examples:
  m31a-mp gather demo --from redis://cache --into gathered
  m31a-mp gather demo --from redis://cache --into gathered --follow &
  m31a-mp share gathered/demo --to /mnt/larger

Makes DIRECTORY/SESSION with metrics.json of the whole, and in sites/ the state
of each site as it came. To look only: m31a-mp show SESSION --from URL. The
exit status is 1 if a site could not be counted.
"""

_ENDS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}


@click.command("gather", epilog=_EPILOG)
@click.argument("session", metavar="[SESSION]", required=False)
@store_option(
    "--from",
    f"The store that the sites share in: {KINDS_OF_STORES}. By default ${SHARE_VARIABLE}.",
)
@click.option(
    "--into",
    "directory",
    metavar="DIRECTORY",
    required=True,
    shell_complete=complete_directory,
    help="The directory of gathered sessions; made if it does not exist.",
)
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C.")
@interval_option("Time between looks.")
@json_option
def command(  # noqa: PLR0913  # all of them by name
    *, session: str | None, url: str | None, directory: str, follow: bool, interval: float, as_json: bool
) -> int:
    """Gather the states of all sites of a session into a directory, durably."""
    if is_session_at(directory):
        raise click.UsageError(f"{directory} is a session; --into takes a directory of sessions")
    url = wanted_store(url, "--from")
    session_id = session_in(session, url)
    gathering = gathering_of(session_id, url)
    into = Session.named(session_id, directory)
    try:
        gathered = GatheredSession(into, gathering)
        with telling_what_is_shared(url):
            gathered.update()
        if follow:
            with SignalPipe(_ENDS | {signal.SIGTSTP}) as pipe:
                tell(f"gathering into {into.root}")
                return _follow(gathered, pipe, interval)
    finally:
        gathering.close()
    metrics = load(directory, session_id)
    assert metrics  # noqa: S101  # for mypy: it was published
    if as_json:
        print_json(Found(into.root, metrics).json())
    else:
        _report(into, metrics)
    return NOT_ALL_WELL if any(site.problem for site in metrics.sites) else 0


def _report(into: Session, metrics: SessionMetrics) -> None:
    sums = metrics.totals
    found = f"{count(len(metrics.sites), 'site')}, {count(sums.tool_calls, 'tool call')}"
    click.echo(f"{shown(into.root)}: {found}, {count(sums.llm_interactions, 'model interaction')}")


def _follow(gathered: GatheredSession, pipe: SignalPipe, interval: float) -> int:
    """Gather until a signal. A store that is gone for a while is told once, and so is a full disk."""
    is_told = False
    while True:
        numbers, _ = pipe.wait(interval)
        if signal.SIGTSTP in numbers:
            stop_until_continued()
        for number in _ENDS.intersection(numbers):
            return 0 if number == signal.SIGINT else SIGNAL_BASE + number
        try:
            gathered.update()
            is_told = False
        except (MetricsError, OSError) as error:
            if not is_told:
                tell(f"{reason_of(error)}; what was gathered stays, and the next look may succeed")
            is_told = True
