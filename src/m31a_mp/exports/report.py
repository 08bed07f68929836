"""A report: the metrics of a session, or of two side by side, as one page of HTML that can be mailed.

The page holds all it needs. Its content security policy lets nothing be loaded, and no other script run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise ImportError(
        f"{error}; a report needs jinja2: pip install 'm31a_mp[report]'", name=error.name
    ) from None
from markupsafe import Markup

from m31a_mp import __version__
from m31a_mp.exports.report_cells import Table, time_text
from m31a_mp.exports.report_facts import Note, facts, notes
from m31a_mp.exports.report_happenings import sites_table, tables_of_one
from m31a_mp.exports.report_names import MAX_NAME, Name, name_of
from m31a_mp.exports.report_tables import (
    failures_table,
    model_use_table,
    models_table,
    parts_table,
    phases_table,
    strategies_table,
    tools_table,
)
from m31a_mp.exports.report_timeline import TimelineChart, timeline_charts
from m31a_mp.model import SessionMetrics, has_records
from m31a_mp.wording import start_of_program

MAX_SESSIONS = 2
"""The most sessions side by side."""

_TAGS = "AB"


@dataclass(frozen=True, slots=True)
class Subject:
    """A session of a report.

    Attributes:
        name: How the session was named: mostly the path of its directory.
        metrics: Its metrics.
        state: Its state in a word or two, as `m31a-mp ls` has it; empty if it is not known.
    """

    name: str
    metrics: SessionMetrics
    state: str = ""


@dataclass(frozen=True, slots=True)
class _Section:
    """A part of the page: a chart or a table for each session, or a table of all."""

    key: str
    title: str
    tables: list[Table] = field(default_factory=list)
    charts: list[TimelineChart | None] = field(default_factory=list)

    @property
    def remark(self) -> str:
        """What stands behind the title: the remark of a table that no session has for itself."""
        return next((table.remark for table in self.tables if not table.tag), "")


def html(
    subjects: Sequence[Subject], *, parts: Sequence[Subject] = (), made_at: datetime | None = None
) -> str:
    """Return a report as a page of HTML in UTF-8.

    The page needs no network. It shows at most 100 rows of a table, 50 happenings of a kind and 80 characters
    of a name, and says what it leaves out. Names are shown as text: whatever they hold, nothing of it is run.

    Args:
        subjects: One session, or two to be compared.
        parts: The sessions of which the metrics of the one session are the sum, to be listed.
        made_at: The time of the report, aware; None: now.

    Raises:
        ValueError: There is no session, or there are more than two.
    """
    if not 1 <= len(subjects) <= MAX_SESSIONS:
        raise ValueError(f"a report is of one session or of two side by side, not of {len(subjects)}")
    tags = list(_TAGS) if len(subjects) > 1 else [""]
    sessions = [subject.metrics for subject in subjects]
    style, script = _source("report.css"), _source("report.js")
    page = _environment().get_template("report.html")
    return page.render(
        title=" and ".join(name_of(_short(subject)).text for subject in subjects),
        style=Markup(style),  # noqa: S704  # our own file
        script=Markup(script),  # noqa: S704  # our own file
        style_hash=_hash(style),
        script_hash=_hash(script),
        version=__version__,
        made_at=time_text(made_at or datetime.now(UTC)),
        heads=[_Head.of(tag, subject) for tag, subject in zip(tags, subjects, strict=True)],
        facts=facts(sessions),
        sections=[
            section for section in _sections(subjects, parts, tags) if section.tables or any(section.charts)
        ],
        tags=tags,
    )


def _short(subject: Subject) -> str:
    return subject.metrics.session_id or subject.name


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands at the top of a session."""

    tag: str
    name: Name
    path: Name
    state: str
    lines: list[str]
    notes: list[Note]

    @classmethod
    def of(cls, tag: str, subject: Subject) -> _Head:
        name, path = name_of(_short(subject)), name_of(subject.name, 2 * MAX_NAME)
        lines, found = list(_lines(subject)), list(notes(subject.metrics, subject.state))
        return cls(tag, name, path, subject.state, lines, found)


def _lines(subject: Subject) -> Iterator[str]:
    """Yield the times of a session."""
    metrics = subject.metrics
    ended = f" to {time_text(metrics.updated_at)}" if has_records(metrics) else ""
    yield f"{time_text(metrics.started_at)}{ended} UTC"
    if metrics.startup:
        yield start_of_program(metrics.startup)


def _sections(
    subjects: Sequence[Subject], parts: Sequence[Subject], tags: Sequence[str]
) -> Iterator[_Section]:
    sessions = [subject.metrics for subject in subjects]
    charts = timeline_charts(sessions)
    yield _Section("timeline", "What happened when", charts=charts)
    tables = [
        parts_table([(part.name, part.metrics) for part in parts]),
        tools_table(sessions),
        failures_table(sessions),
        models_table(sessions),
        model_use_table(sessions),
        phases_table(sessions),
        strategies_table(sessions),
    ]
    for made in tables:
        yield _Section(made.key, made.title, [made] if made.rows else [])
    of_each = [[*tables_of_one(metrics), sites_table(metrics)] for metrics in sessions]
    for side_by_side in zip(*of_each, strict=True):
        tagged = [replace(made, tag=tag) for tag, made in zip(tags, side_by_side, strict=True) if made.rows]
        yield _Section(side_by_side[0].key, side_by_side[0].title, tagged)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("m31a_mp.exports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _source(name: str) -> str:
    """Return the text of a file beside the templates."""
    environment = _environment()
    assert environment.loader  # noqa: S101  # for mypy
    return environment.loader.get_source(environment, name)[0]


def _hash(text: str) -> str:
    """Return the hash of an inline style or script, which the content security policy allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
