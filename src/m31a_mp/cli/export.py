"""`m31a-mp export`: give the metrics of a session to other programs."""

from __future__ import annotations

import click

from m31a_mp.cli.extras import needing
from m31a_mp.cli.naming import GuessingGroup, complete_file, existing_or_latest, session_argument
from m31a_mp.inspection.status import status

_GROUP_EPILOG = """\
\b
Examples:
  m31a-mp export prometheus sessions/demo

Works while the session runs, counts every record, and changes nothing.
"""

_PROMETHEUS_EPILOG = """\
\b
Examples:
  m31a-mp export prometheus sessions/demo | promtool check metrics
  m31a-mp export prometheus sessions/demo \\
      -o /var/lib/node_exporter/m31a.prom

FILE is replaced as a whole. The textfile collector of node_exporter reads it
if its name ends in .prom. To have running sessions scraped: m31a-mp serve.
"""

by_session_option = click.option(
    "--label-session", "by_session", is_flag=True, help="Label each series with the session's name."
)


@click.group("export", cls=GuessingGroup, epilog=_GROUP_EPILOG, no_args_is_help=False)
def command() -> None:
    """Give the metrics of a session to Prometheus or OpenTelemetry."""


@command.command("prometheus", epilog=_PROMETHEUS_EPILOG)
@session_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    shell_complete=complete_file,
    help="Write to FILE instead of stdout.",
)
@by_session_option
def prometheus(directory: str | None, output: str | None, *, by_session: bool) -> None:
    """Print the metrics of a session in Prometheus's text format."""
    exports = needing("m31a_mp.exports.prometheus", "prometheus_client>=0.21")
    found = status(existing_or_latest(directory, "m31a-mp export prometheus"))
    if output is None:
        click.echo(exports.text(found, by_session=by_session), nl=False)
    else:
        exports.write_textfile(output, found, by_session=by_session)
