"""`m31a-mp export`: give the metrics of a session to other programs."""

from __future__ import annotations

import click

from m31a_mp.cli.arguments import GuessingGroup, complete_file, session_argument
from m31a_mp.cli.extras import needing
from m31a_mp.cli.naming import TroubleError, existing_or_latest
from m31a_mp.cli.output import STDOUT, checked, writing
from m31a_mp.errors import ExportError
from m31a_mp.inspection.status import status
from m31a_mp.system.log import shown
from m31a_mp.wording import count

_GROUP_EPILOG = """\
\b
Examples:
  m31a-mp export prometheus sessions/demo
  m31a-mp export otlp sessions/demo --endpoint http://localhost:4318

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

_OTLP_EPILOG = """\
\b
Examples:
  m31a-mp export otlp sessions/demo
  m31a-mp export otlp sessions/demo --endpoint http://localhost:4318

The variables OTEL_EXPORTER_OTLP_* hold, OTEL_RESOURCE_ATTRIBUTES and
OTEL_SERVICE_NAME, too. URL may be without a path: /v1/metrics is usual. The
numbers are those since the start of the session, so that sending them twice
is harmless.
"""

_OTHER_ENDPOINT = "see whether a receiver of OTLP over HTTP listens there, or name another: --endpoint URL"

by_session_option = click.option(
    "--label-session", "by_session", is_flag=True, help="Label each series with the session's name."
)


@click.group("export", cls=GuessingGroup, epilog=_GROUP_EPILOG, no_args_is_help=False)
def command() -> None:
    """Give the metrics of a session to Prometheus or OpenTelemetry."""


@command.command("prometheus", short_help="Print it for Prometheus.", epilog=_PROMETHEUS_EPILOG)
@session_argument
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    shell_complete=complete_file,
    help="Write to FILE instead of stdout, and replace it if it is there; - is stdout.",
)
@by_session_option
def prometheus(directory: str | None, output: str | None, *, by_session: bool) -> None:
    """Print the metrics of a session in Prometheus's text format."""
    exports = needing("m31a_mp.exports.prometheus", "prometheus_client>=0.23")
    path = None if output is None or output == STDOUT else checked(output)  # before the work
    found = status(existing_or_latest(directory, "m31a-mp export prometheus"))
    if path is None:
        click.echo(exports.text(found, by_session=by_session), nl=False)
    else:
        with writing(path):
            exports.write_textfile(path, found, by_session=by_session)


@command.command("otlp", short_help="Send it to OpenTelemetry.", epilog=_OTLP_EPILOG)
@session_argument
@click.option(
    "--endpoint",
    metavar="URL",
    help="Send to URL. By default as the environment says, else to http://localhost:4318.",
)
@click.option(
    "--older-names",
    is_flag=True,
    default=None,
    help="Also send gen_ai.client.token.usage and gen_ai.client.operation.duration.",
)
def otlp(directory: str | None, endpoint: str | None, *, older_names: bool | None) -> None:
    """Send the metrics of a session to OpenTelemetry, by OTLP over HTTP."""
    exports = needing("m31a_mp.exports.otlp", "opentelemetry-exporter-otlp-proto-http>=1.45")
    found = status(existing_or_latest(directory, "m31a-mp export otlp"))
    try:
        exporter = exports.Exporter(endpoint, older_names=older_names)
    except ValueError as error:
        raise TroubleError(str(error), "m31a-mp export otlp --help", status=2) from None
    try:
        points = exporter.export(found.metrics)
    except ExportError as error:
        raise TroubleError(str(error), _OTHER_ENDPOINT) from None
    click.echo(f"{shown(found.directory)}: {count(points, 'data point')} sent to {shown(exporter.endpoint)}")
