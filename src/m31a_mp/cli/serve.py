"""`m31a-mp serve`: let Prometheus scrape the running sessions."""

from __future__ import annotations

import os
import signal

import click

from m31a_mp.cli import SIGNAL_BASE
from m31a_mp.cli.arguments import complete_directory
from m31a_mp.cli.counts import WholeNumber
from m31a_mp.cli.export import by_session_option
from m31a_mp.cli.extras import needing
from m31a_mp.cli.naming import DEFAULT_SESSIONS, TroubleError, is_session_at, path_word, sessions_elsewhere
from m31a_mp.cli.program import tell
from m31a_mp.cli.waiting import SignalPipe
from m31a_mp.system.log import shown

_EPILOG = """\
\b
Examples:
  m31a-mp serve sessions
  m31a-mp serve sessions --session demo --label-session --port 0

Each scrape reads the sessions anew, and changes nothing. The counters are sums
over the sessions that run. A session that ended stays in the sums, so that no
counter decreases. With --label-session each session has its own series, until
five minutes after its end. All who reach the port can read the metrics.

Ctrl-C or SIGTERM ends the program, with 0.
"""

_ENDS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_REGULAR_ENDS = {signal.SIGINT, signal.SIGTERM}
_DAY = 86400.0


@click.command("serve", epilog=_EPILOG)
@click.argument("directory", required=False, default=DEFAULT_SESSIONS, shell_complete=complete_directory)
@click.option(
    "--port",
    type=WholeNumber(most=65535),
    default=9464,
    show_default=True,
    metavar="PORT",
    help="The port; 0 for any free one.",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="HOST", help="The address to listen at."
)
@click.option(
    "--session",
    "names",
    multiple=True,
    metavar="NAME",
    help="Serve this session of DIRECTORY, whether it runs or not. May be repeated.",
)
@by_session_option
@click.option(
    "--max-names",
    type=WholeNumber(1),
    default=500,
    show_default=True,
    metavar="N",
    help='Tools, phases and models with series of their own; the rest is "other".',
)
def command(  # noqa: PLR0913  # one for each option
    directory: str, port: int, host: str, names: tuple[str, ...], max_names: int, *, by_session: bool
) -> int:
    """Serve the metrics of the running sessions in DIRECTORY to Prometheus, at /metrics."""
    prometheus = needing("m31a_mp.exports.prometheus", "prometheus_client>=0.23")
    scraping = needing("m31a_mp.exports.scraping", "prometheus_client>=0.23")
    sessions_dir = os.path.abspath(directory)
    _check(sessions_dir)
    collector = prometheus.SessionsCollector(
        sessions_dir, names or None, by_session=by_session, max_names=max_names
    )
    collector.collect()  # sessions that are new from now on count also if they end before the first scrape
    try:
        scrapes = scraping.Scraping(collector, host, port)
    except OSError as error:
        hint = "name another: --host HOST or --port PORT; --port 0 takes any free one"
        raise TroubleError(str(error.strerror), hint) from None
    with SignalPipe(_ENDS) as pipe, scrapes as server:
        click.echo(f"serving {shown(sessions_dir)} at {server.url}")
        for name in names:
            if not os.path.lexists(os.path.join(sessions_dir, name)):  # perhaps a typing error
                tell(f"there is no session {name} yet; it is served as soon as it is there")
        while True:
            for number in pipe.wait(_DAY)[0]:
                return 0 if number in _REGULAR_ENDS else SIGNAL_BASE + number


def _check(sessions_dir: str) -> None:
    if not os.path.isdir(sessions_dir):
        hint = sessions_elsewhere(sessions_dir, "m31a-mp serve")
        raise TroubleError(f"there is no directory {sessions_dir}", hint)
    if is_session_at(sessions_dir):
        parent, name = os.path.split(sessions_dir)
        raise TroubleError(
            f"{sessions_dir} is a session, not a directory of sessions",
            f"m31a-mp serve {path_word(parent)} --session {path_word(name)}",
        )
