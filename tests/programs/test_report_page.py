"""`m31a-mp report`: the file that it writes, and the page in a real browser."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_cli import Call, Result, call
from test_cli_run import without

import working_day
from browser import Page, opened
from damage import raising
from m31a_mp import load
from m31a_mp.inspection.status import status
from m31a_mp.model import SessionMetrics
from m31a_mp.session.paths import Session

LANE = 52  # the height of the highest bar of the timeline, in pixels
HOSTILE = [
    '</script><img src=x onerror="window.harmed=1">',
    "'\"><svg onload=window.harmed=1>",
    "</bdi></td><h1>title</h1>",
    "<!-- <script>",
    "{{ 7 * 7 }}",
    "\u202egpj.exe",
    "a\x00b\x1b[31m",
    "\u05d0\u05d1\u05d2 1",
]

__all__ = ["call"]  # a fixture


@pytest.fixture
def monday(tmp_path: Path) -> Path:
    """A session of a day's work."""
    return working_day.write(tmp_path / "sessions" / "monday", working_day.working_day(1))


@pytest.fixture
def tuesday(tmp_path: Path) -> Path:
    """A shorter one."""
    records = working_day.working_day(2, minutes=35, calls=700)
    return working_day.write(tmp_path / "sessions" / "tuesday", records)


def metrics_of(directory: Path) -> SessionMetrics:
    return status(Session.named(directory.name, directory.parent)).metrics


# --- The file -----------------------------------------------------------------------------------------


def test_report_without_a_name_says_which_session_it_took(call: Call, monday: Path) -> None:
    assert re.fullmatch(rf"report\.html: \d+ KiB about {monday}\n", call("report").out)


def test_report_is_a_small_private_file_and_changes_nothing_in_the_session(call: Call, monday: Path) -> None:
    before = sorted(os.walk(monday))
    result = call("report", monday)
    assert (result.status, result.err) == (0, "")
    assert re.fullmatch(r"report\.html: \d+ KiB\n", result.out)
    assert sorted(os.walk(monday)) == before
    made = Path("report.html")
    assert made.stat().st_size < 300 * 1024
    assert made.stat().st_mode & 0o777 == 0o600
    assert set(os.listdir()) == {"sessions", "report.html"}


def test_usual_name_replaces_nothing_and_a_given_one_does(call: Call, monday: Path) -> None:
    Path("report.html").write_text("of another program")
    result = call("report", monday)
    assert (result.status, result.out) == (3, "")
    assert result.err == ("m31a-mp: report.html is there already\nhint: to replace it: -o report.html\n")
    assert Path("report.html").read_text() == "of another program"
    assert call("report", monday, "-o", "report.html").status == 0
    assert "<!DOCTYPE html>" in Path("report.html").read_text()


def test_report_through_a_link_replaces_the_file_that_it_leads_to(call: Call, monday: Path) -> None:
    Path("there").mkdir()
    Path("there/page.html").write_text("old")
    os.symlink("there/page.html", "link.html")
    assert call("report", monday, "-o", "link.html").status == 0
    assert Path("link.html").is_symlink()
    assert "<!DOCTYPE html>" in Path("there/page.html").read_text()


def test_empty_name_of_a_file_replaces_nothing(call: Call, monday: Path) -> None:
    Path("report.html").write_text("of another program")
    result = call("report", monday, "-o", "")  # of a variable that is not set
    assert (result.status, result.out) == (3, "")
    assert result.err.startswith("m31a-mp: '' is a directory\nhint: name a file: -o FILE")
    assert Path("report.html").read_text() == "of another program"


@pytest.mark.slow
def test_report_goes_to_stdout_whole(monday: Path) -> None:
    command = [sys.executable, "-m", "m31a_mp", "report", str(monday), "-o", "-"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert result.stdout.startswith(b"<!DOCTYPE html>")
    assert result.stdout.endswith(b"</html>\n")
    assert "\u2013".encode() in result.stdout
    assert result.stderr == b""


def test_missing_directory_is_told_with_what_helps(call: Call, monday: Path) -> None:
    result = call("report", monday, "-o", "no/such/page.html")
    assert result.status == 3
    assert result.err == (
        f"m31a-mp: {Path.cwd()}/no/such/page.html cannot be written: No such file or directory\n"
        "hint: make the directory first: mkdir -p no/such\n"
    )


@pytest.mark.parametrize(
    ("output", "what"),
    [("pipe", "no regular file"), ("socket", "no regular file"), ("sessions", "a directory")],
)
@pytest.mark.parametrize("command", [["report"], ["export", "prometheus"]])
def test_what_is_no_file_is_never_replaced(
    call: Call, monday: Path, command: list[str], output: str, what: str
) -> None:
    # Nodes of the test's own: a name of the system, like /dev/null, would be lost if the check were broken.
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        before = os.stat(output)
        result = call(*command, monday, "-o", output)
    assert (result.status, result.out) == (3, "")
    assert result.err.startswith(f"m31a-mp: {output} is {what}\nhint: ")
    assert os.stat(output).st_ino == before.st_ino


@pytest.mark.parametrize("small_disk", ["size=64k"], indirect=True)
def test_full_disk_is_told_and_leaves_the_old_report(call: Call, small_disk: Path, tmp_path: Path) -> None:
    page = small_disk / "page.html"
    page.write_text("the old one")
    session = working_day.write(Path("/dev/shm") / tmp_path.name, working_day.working_day())
    try:
        result = call("report", session, "-o", page)
    finally:
        for path in session.iterdir():
            path.unlink()
        session.rmdir()
    assert (result.status, result.out) == (3, "")
    assert result.err == (
        f"m31a-mp: {page} cannot be written: No space left on device\nhint: write it elsewhere: -o FILE\n"
    )
    assert page.read_text() == "the old one"
    assert [path.name for path in small_disk.iterdir()] == ["page.html"]


def test_full_stdout_is_told(monday: Path) -> None:
    command = [sys.executable, "-m", "m31a_mp", "report", str(monday), "-o", "-"]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 3
    assert result.stderr.startswith("m31a-mp: the output cannot be written: No space left on device\n")


def test_crash_before_the_rename_leaves_the_old_report(
    call: Call, monday: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("page.html").write_text("the old one")
    monkeypatch.setattr(os, "replace", raising(OSError(5, "Input/output error")))
    assert call("report", monday, "-o", "page.html").status == 3
    assert Path("page.html").read_text() == "the old one"
    assert set(os.listdir()) == {"sessions", "page.html"}


def test_two_reports_to_one_file_do_not_meet(
    call: Call, monday: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync
    results: list[Result] = []

    def another(fd: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", sync)
            results.append(call("report", monday, "-o", "page.html"))
        sync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", another)
        results.append(call("report", monday, "-o", "page.html"))
    assert [(result.status, result.err) for result in results] == [(0, ""), (0, "")]
    assert set(os.listdir()) == {"sessions", "page.html"}
    whole = Path("page.html").read_bytes()
    assert whole.startswith(b"<!DOCTYPE html>")
    assert whole.rstrip().endswith(b"</html>")


def test_what_a_killed_report_left_goes_away(call: Call, monday: Path) -> None:
    left = Path(".page.html.4242.0badcafe.tmp")
    left.touch()
    os.utime(left, (0, 0))
    assert call("report", monday, "-o", "page.html").status == 0
    assert set(os.listdir()) == {"sessions", "page.html"}


def test_session_that_is_not_there_makes_no_report(call: Call) -> None:
    result = call("report", "none")
    assert (result.status, result.out) == (3, "")
    assert "there is no session in" in result.err
    assert os.listdir() == []


def test_session_that_is_named_twice_counts_once(call: Call, monday: Path, tuesday: Path) -> None:
    result = call("report", monday, f"{monday}/", tuesday)
    assert result.status == 0
    assert result.err == "m31a-mp: sessions/monday was named twice and counts once\n"
    assert "Two sessions side by side" in Path("report.html").read_text()


def test_report_of_a_bare_file(call: Call, monday: Path) -> None:
    assert call("compact", monday).status == 0
    metrics = load(monday.parent, monday.name)
    assert metrics
    os.rename(monday / "metrics.json", "metrics.json")
    assert call("report", "metrics.json").status == 0
    assert f">{metrics.totals.total_tokens:,}<" in Path("report.html").read_text()


def test_three_sessions_are_added_up(call: Call, monday: Path, tuesday: Path, tmp_path: Path) -> None:
    third = working_day.write(tmp_path / "sessions" / "third", working_day.working_day(3, calls=50))
    assert call("report", monday, tuesday, third).status == 0
    text = Path("report.html").read_text()
    assert "the sum of 3 sessions" in text
    calls = sum(metrics_of(each).totals.tool_calls for each in (monday, tuesday, third))
    assert f">{calls:,}<" in text


def test_missing_package_is_named_with_what_helps(monday: Path, tmp_path: Path) -> None:
    done = without("jinja2", "report", monday, modules=tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.splitlines() == [
        "m31a-mp: jinja2 is not installed",
        f"hint: {sys.executable} -m pip install 'jinja2>=3.1.4'",
    ]


# --- In a browser -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with opened() as page:
        yield page


@pytest.fixture
def one(call: Call, monday: Path) -> Path:
    """The report of a session."""
    assert call("report", monday, "-o", "one.html").status == 0
    return Path("one.html").resolve()


@pytest.fixture
def two(call: Call, monday: Path, tuesday: Path) -> Path:
    """The report of two sessions."""
    assert call("report", monday, tuesday, "-o", "two.html").status == 0
    return Path("two.html").resolve()


@pytest.fixture
def hostile(call: Call, tmp_path: Path) -> Path:
    """The report of a session whose names are attacks."""
    records = (
        record
        for n, name in enumerate(HOSTILE)
        for record in (
            working_day.record(n, "tool_call", name=name, success=False, duration_ms=n, error=name),
            working_day.record(n, "phase_transition", phase=name),
            working_day.record(n, "cancellation", phase=name, reason=name),
            working_day.record(n, "tool_started", name=name, call=f"c{n}"),
        )
    )
    working_day.write(tmp_path / "sessions" / HOSTILE[3], records)
    assert call("report", tmp_path / "sessions" / HOSTILE[3], "-o", "hostile.html").status == 0
    return Path("hostile.html").resolve()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("report", ["one", "two", "hostile"])
def test_page_fits_and_asks_for_nothing(
    browser: Page, report: str, width: int, scheme: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(report)
    browser.open(path, width=width, scheme=scheme)
    assert browser.complaints() == []
    assert browser.requested() == [path.as_uri()]
    assert browser.ask("document.documentElement.scrollWidth") == width
    assert browser.ask("window.harmed") is None
    paper = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 3 * 64) == (scheme == "dark")
    assert browser.ask("document.images.length + document.links.length") == browser.ask(
        "document.querySelectorAll('nav a').length"
    )


@pytest.mark.slow
def test_usual_session_needs_no_scrolling_to_the_side(browser: Page, one: Path) -> None:
    browser.open(one)
    assert set(browser.each(".scroll", "e.scrollWidth - e.clientWidth")) == {0}


@pytest.mark.slow
def test_hostile_names_stand_there_as_text(browser: Page, hostile: Path) -> None:
    browser.open(hostile)
    names = browser.each("#table-tools tbody th", "e.textContent")
    plain = {name for name in HOSTILE if name.isprintable()}
    assert plain | {r"\u202egpj.exe", r"a\x00b\x1b[31m"} == set(names)
    assert browser.ask("document.title") == HOSTILE[3]
    assert browser.ask("document.querySelectorAll('h1, script, img').length") == 2


def test_policy_stops_what_gets_into_the_page_all_the_same(browser: Page, one: Path) -> None:
    smuggled = (
        "<script>window.harmed = 1</script><img src=http://127.0.0.1:9/x onerror='window.harmed = 2'>"
        "<style>body { display: none }</style><form action=http://127.0.0.1:9/><p style='color: red'>"
    )
    broken = one.with_name("broken.html")
    with socket.create_server(("127.0.0.1", 0)) as server:
        smuggled = smuggled.replace(":9/", f":{server.getsockname()[1]}/")
        broken.write_text(one.read_text("utf-8").replace("<main>", "<main>" + smuggled), "utf-8")
        browser.open(broken)
        assert browser.ask("window.harmed") is None
        assert browser.ask("getComputedStyle(document.body).display") == "block"
        assert len(browser.complaints()) >= 3  # the test can see complaints
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def bars_on_the_page(browser: Page, kind: str) -> dict[str, float]:
    """The heights of bars as they are drawn, in pixels, by the time in their titles."""
    found = browser.each(
        f".timeline rect.{kind}",
        "[e.parentNode.querySelector('title').textContent.slice(0, 19), e.getBoundingClientRect().height]",
    )
    return dict(found)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_bars_of_the_timeline_are_as_high_as_the_numbers(browser: Page, one: Path, width: int) -> None:
    browser.open(one, width=width)
    caption = browser.ask("document.querySelector('figcaption:last-child').textContent")
    seconds = int(re.search(r"Each column is (\d+) s\.", caption)[1])  # type: ignore[index]
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for each in working_day.working_day(1):
        if each["event"] not in {"tool_call", "llm_interaction"}:
            continue
        start = each["time"] // 10**9 // seconds * seconds
        title = f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M:%S}"
        if each["event"] == "tool_call":
            sums["ok" if each["success"] else "failed"][title] += 1
        else:
            sums["tokens"][title] += each["total_tokens"]
            sums["cost"][title] += each["cost"] or 0
            sums["unknown"][title] += each["cost"] is None
    calls = [sums["ok"][title] + sums["failed"][title] for title in {*sums["ok"], *sums["failed"]}]
    for kind, most in {
        "ok": max(calls),
        "failed": max(calls),
        "tokens": max(sums["tokens"].values()),
        "cost": max(sums["cost"].values()),
    }.items():
        drawn = bars_on_the_page(browser, kind)
        expected = {title: max(1.5, LANE * n / most) for title, n in sums[kind].items() if n}
        assert drawn == pytest.approx(expected, abs=0.02)
    marked = {title for title, n in sums["unknown"].items() if n}
    assert set(bars_on_the_page(browser, "unknown")) == marked


def test_distributions_are_those_of_the_recorded_durations(browser: Page, one: Path) -> None:
    browser.open(one)
    recorded: dict[str, list[int]] = defaultdict(list)
    for each in working_day.working_day(1):
        if each["event"] == "tool_call":
            recorded[each["name"]].append(each["duration_ms"])
    drawn = browser.each(
        "#table-tools tbody tr",
        "[e.cells[0].textContent, e.querySelector('.shape-0').getAttribute('d'), "
        "e.querySelector('.shape svg').viewBox.baseVal.width]",
    )
    assert {name for name, *_ in drawn} == set(recorded)
    for name, path, columns in drawn:
        # A bar holds a quarter of a doubling. The bars of 0 ms stand before the others, with a gap.
        bars = Counter(
            math.ceil(4 * math.log2(duration / 1000) - 1e-12) if duration else None
            for duration in recorded[name]
        )
        most = max(bars.values())
        heights = [30 - y for y, end, start in outline(path) for _ in range(start, end)]
        assert len(heights) == columns
        expected = [30 * bars[i] / most for i in sorted(i for i in bars if i is not None)]
        assert [h for h in heights[2:] if h] == pytest.approx([max(1, h) for h in expected], abs=0.01)
        assert heights[0] == pytest.approx(max(1, 30 * bars[None] / most) if bars[None] else 0, abs=0.01)


def outline(path: str) -> Iterator[tuple[float, int, int]]:
    """The steps of an outline: the height, the end, and the start."""
    x, y = 0, 0.0
    for command, number in re.findall(r"([VH])([\d.]+)", path):
        if command == "V":
            y = float(number)
        else:
            yield y, int(number), x
            x = int(number)


def test_table_says_what_show_says(browser: Page, one: Path, call: Call, monday: Path) -> None:
    browser.open(one)
    rows = browser.each("#table-tools tbody tr", "[...e.cells].map((cell) => cell.innerText)")
    shown = call("show", monday)
    for name, total, calls, failed, _, average, p50, p95, most, *_ in rows:
        cells = shown.row(name)
        assert [cells[i] for i in (0, 2, 4, 5, 6, 7, 8)] == [calls, failed, average, p50, p95, most, total]


def cells_of(browser: Page, column: int) -> list[str]:
    """A column of the table of models."""
    return browser.each("#table-models tbody tr", f"e.cells[{column}].innerText")


def test_click_on_a_title_sorts_and_what_is_not_known_is_last(browser: Page, one: Path) -> None:
    browser.open(one)

    def click(column: int) -> None:
        browser.ask(f"document.querySelectorAll('#table-models thead th')[{column}].firstChild.click()")

    click(1)
    assert [float(cost) for cost in cells_of(browser, 1)[:2]] == sorted(map(float, cells_of(browser, 1)[:2]))[
        ::-1
    ]
    assert cells_of(browser, 1)[2] == "not known"
    click(1)
    assert [float(cost) for cost in cells_of(browser, 1)[:2]] == sorted(map(float, cells_of(browser, 1)[:2]))
    assert cells_of(browser, 1)[2] == "not known"
    click(0)
    assert cells_of(browser, 0) == ["claude-haiku-4-5", "claude-sonnet-4-5", "local/qwen3-coder"]
    assert browser.ask("document.querySelectorAll('[aria-sort]').length") == 1
    click(0)
    assert cells_of(browser, 0) == ["local/qwen3-coder", "claude-sonnet-4-5", "claude-haiku-4-5"]
    click(2)
    assert cells_of(browser, 0) == ["claude-sonnet-4-5", "claude-haiku-4-5", "local/qwen3-coder"]


@pytest.mark.slow
def test_page_without_scripts_has_the_same_text(browser: Page, one: Path) -> None:
    browser.open(one)
    with_scripts = browser.ask("document.body.innerText")
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(one)
        assert browser.ask("document.querySelectorAll('button').length") == 0
        assert browser.ask("document.body.innerText") == with_scripts
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.slow
@pytest.mark.parametrize("report", ["one", "two"])
def test_print_has_all_columns_on_white(browser: Page, report: str, request: pytest.FixtureRequest) -> None:
    browser.open(request.getfixturevalue(report), width=700, scheme="dark")
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.ask("document.documentElement.scrollWidth") == 700
        assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert browser.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
