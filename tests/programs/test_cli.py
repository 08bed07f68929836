"""The commands that look, merge and record; `run` and terminals are in test_cli_run.py."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from m31a_mp import Collector, PlanOutcome, SessionMetrics, Usage, attach, load
from m31a_mp.cli import ls, main, progress, showing
from m31a_mp.inspection.status import Reading, reading
from m31a_mp.session.paths import Session
from workers import Forked, obey_permissions

COMMANDS = ["run", "record", "show", "watch", "report", "ls", "compact", "verify"]
COMMANDS += ["share", "gather", "export", "serve"]
RECORDS = ["tool", "llm", "phase", "heal", "bisect", "cancellation"]


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def row(self, name: str) -> list[str]:
        """The cells of the first row that starts with that name."""
        (line, *_) = [line for line in self.out.splitlines() if line.startswith(name + " ")]
        return re.split(r"\s{2,}", line.strip())[1:]


Call = Callable[..., Result]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Run the command line in this process, in a directory of its own."""
    monkeypatch.delenv("M31A_MP_SESSION", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def directory(sessions: Path) -> Path:
    """Where the session "one" is, or will be."""
    return sessions / "one"


def fill(directory: Path) -> None:
    """Records of every kind, merged; the session is finished."""
    with Collector(directory.name, directory.parent) as collector:
        for i in range(4):
            collector.record_tool_call("grep", i != 3, 10 * i)
        collector.record_llm_interaction("plan", Usage(900, 100, 1000), 0.25)
        collector.record_llm_interaction("verify", Usage(90, 10, 100), 0.5)
        collector.record_phase_transition("plan")
        collector.record_phase_duration("plan", 8300, True)
        collector.record_phase_transition("verify")
        collector.record_heal_trigger("verify")
        collector.record_bisect_trigger("verify")


def die_owning(directory: Path) -> None:
    collector = Collector(directory.name, directory.parent)
    collector.record_tool_call("make", True, 5)
    os._exit(0)


def crash(directory: Path) -> None:
    """A session whose owner died with one record that is not merged."""
    with Forked(die_owning, directory) as owner:
        owner.wait()


def refuse(*_: object) -> None:
    raise KeyError("x")


def on_disk(directory: Path) -> dict[str, tuple[int, bytes]]:
    """All there is: every file with its bytes and its time of change, every directory with its time."""
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [directory, *directory.rglob("*")]
    }


# --- show ---------------------------------------------------------------------------------------------


def test_show_has_a_row_for_every_tool_model_use_and_phase(call: Call, directory: Path) -> None:
    fill(directory)
    result = call("show", directory)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"{directory}: finished\nstarted ")
    assert result.row("grep") == ["4", "3", "1", "75.0 %", "15 ms", "10 ms", "30 ms", "30 ms", "60 ms"]
    assert result.row("in all") == ["2", "990", "110", "1,100", "0.7500"]
    assert result.row("plan") == ["1", "900", "100", "1,000", "0.2500"]
    phases = Result(0, result.out.partition("Phases")[2], "")
    assert phases.row("plan") == ["ok", "8.3 s", "1", "0", "0"]
    assert phases.row("verify") == ["-", "-", "1", "1", "1"]
    assert "not in metrics.json" not in result.out


def test_show_names_errors_models_and_costs_that_are_not_known(call: Call, directory: Path) -> None:
    usage = Usage(900, 100, 1000, cached_tokens=500, cache_write_tokens=100, reasoning_tokens=30)
    with Collector(directory.name, directory.parent) as collector:
        for error in ("exit 2", "timeout", "exit 2"):
            collector.record_tool_call("make", False, 20, error=error)
        collector.record_llm_interaction("plan", usage, None, model="opus", duration_ms=2000)
        collector.record_llm_interaction("plan", usage, 0.25, model="opus", duration_ms=2000)
        collector.record_llm_interaction("verify", usage, None)
        collector.record_startup(900, 40, 300, 60)
        collector.record_heal_duration("plan", 700)
        collector.record_edit_strategy("search_replace")
        collector.record_plan_outcome(PlanOutcome("T-1", "edit", "", True, 8300, files=("a.py", "b.py")))
        collector.record_completion("plan", False, True)
    result = call("show", directory)
    errors = Result(0, result.out.partition("Errors")[2].partition("Models")[0], "")
    assert [errors.row("make"), errors.out.count("make")] == [["exit 2", "2"], 2]
    assert "Models; 1 interaction without one\n" in result.out
    opus = ["2", "600", "1,000", "200", "140", "60", "2,000", "2.0 s", "2.0 s", "at least 0.2500"]
    assert result.row("opus") == opus
    assert result.row("verify") == ["1", "900", "100", "1,000", "not known"]
    assert "the program took 900 ms to start: configuration 40 ms" in result.out
    assert "heal time" in result.out
    assert result.row("search_replace") == ["1"]
    assert result.row("T-1") == ["edit", "yes", "8.3 s", "0", "0", "a.py, b.py", "0 s"]
    assert call("show", directory, "--json").json["totals"]["unknown_cost_count"] == 2
    assert call("ls", directory.parent).row(directory.name)[-2] == "at least 0.2500"


def test_show_sorts_and_leaves_out_what_is_not_asked_for(call: Call, directory: Path) -> None:
    with attach(directory.name, directory.parent) as recorder:
        for i in range(2000):
            recorder.record_tool_call(f"tool-{i:04}", i % 3 != 0, i)
    result = call("show", directory, "--sort", "total", "--top", "3")
    tools = re.findall(r"^tool-\d+", result.out, re.MULTILINE)
    assert tools == ["tool-1999", "tool-1998", "tool-1997"]
    assert "\n1,997 more tools\n" in result.out
    assert call("show", directory, "--sort", "failed", "--top", "1").row("tool-0000")[:3] == ["1", "0", "1"]
    assert call("show", directory, "--top", "0").status == 2
    assert call("show", directory, "--sort", "beauty").status == 2


def three(sessions: Path) -> list[str]:
    """Sessions whose numbers tell them apart."""
    for i, name in enumerate(("a", "b", "c"), 1):
        with Collector(name, sessions) as collector:
            for _ in range(i):
                collector.record_tool_call("make", i != 2, 10 * i)
            collector.record_llm_interaction("plan", Usage(i, i, 2 * i), 0.1 * i, model="opus")
    return [str(sessions / name) for name in ("a", "b", "c")]


def test_show_of_several_sessions_has_their_sum_and_each_beside_it(call: Call, tmp_path: Path) -> None:
    names = three(tmp_path / "some")
    result = call("show", *names)
    assert result.out.startswith("the sum of 3 sessions\n")
    assert result.row("some/b") == ["2", "2", "1", "4", "0.2000"]
    assert result.row("in all") == ["6", "2", "3", "12", "0.6000"]
    assert result.row("make")[:3] == ["6", "4", "2"]
    document = call("show", *names, "--json").json
    assert [one["totals"]["tool_calls"] for one in document["sessions"]] == [1, 2, 3]
    assert document["totals"]["tool_calls"] == document["metrics"]["tools"][0]["call_count"] == 6
    assert call("show", names[0], Path(names[1]) / "metrics.json").row("make")[0] == "3"


def test_comparison_has_the_larger_differences_first(call: Call, tmp_path: Path) -> None:
    for name, factor in (("before", 1), ("after", 3)):
        with Collector(name, tmp_path) as collector:
            for tool, took in (("little", 1), ("much", 1000), ("same", 0)):
                collector.record_tool_call(tool, factor == 1, took * factor)
            if factor == 3:
                collector.record_tool_call("new", True, 5)
    pair = [str(tmp_path / name) for name in ("before", "after")]
    result = call("show", "--compare", *pair)
    assert result.out.startswith("before → after\n")
    found = [line.split()[0] for line in result.out.partition("Tools that differ")[2].splitlines()[3:]]
    assert found == ["much", "new", "little", "same"]
    assert result.row("much") == ["1", "0.0 % → 100.0 %", "1.0 s → 3.0 s", "1.0 s → 3.0 s", "1.0 s → 3.0 s"]
    assert result.row("tool calls") == ["3", "4", "+33.3 %"]
    document = call("show", "--compare", *pair, "--json").json
    assert document["tools"][0]["total_duration_ms"] == [1000, 3000]
    assert call("show", "--compare", pair[0], pair[0]).out.count("that differ") == 0


def test_activity_is_one_line_and_a_clock_that_is_wrong_does_not_flatten_it(
    call: Call, directory: Path
) -> None:
    start = 1_795_388_400
    lines = [
        b'{"event":"tool_call","time":%d,"name":"make","success":true,"duration_ms":1}\n' % (second * 10**9)
        for second in [1000, *(start + i for i in range(0, 40, 2) for _ in range(i + 1))]
    ]
    directory.mkdir(parents=True)
    (directory / "journal.ndjson").write_bytes(b"".join(lines))
    out = call("show", directory).out
    bars, note = out.partition("Activity\n")[2].splitlines()[:2]
    assert (bars[0], bars[-1], bars.count(" ")) == ("▁", "█", 19)
    assert note == "calls and interactions, 1 s a column, at most 39 in one; 1 far from these left out"


def test_show_json_is_of_the_form_that_is_promised(call: Call, directory: Path) -> None:
    fill(directory)
    document = call("show", directory, "--json").json
    metrics = load(directory.parent, directory.name)
    assert metrics
    assert document == {
        "version": 1,
        "session": str(directory),
        "state": "finished",
        "owner": None,
        "writers": [],
        "unmerged": 0,
        "unshared": None,
        "totals": {
            "tool_calls": 4,
            "tool_failures": 1,
            "interrupted": 0,
            "running": 0,
            "llm_interactions": 2,
            "prompt_tokens": 990,
            "completion_tokens": 110,
            "total_tokens": 1100,
            "cost": 0.75,
            "unknown_cost_count": 0,
            "phases": 2,
            "dropped": 0,
            "rejected": 0,
        },
        "metrics": metrics.to_json(),
    }


@pytest.mark.usefixtures("segments_at_once")
def test_show_of_a_running_session_has_its_owner_and_writers_and_what_is_not_merged(
    call: Call, directory: Path
) -> None:
    with Collector(directory.name, directory.parent) as collector:
        collector.record_tool_call("grep", True, 1)
        document = call("show", directory, "--json").json
        (writer,) = document.pop("writers")
        assert document["state"] == "running"
        assert document["owner"]["pid"] == os.getpid()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\+00:00", document["owner"]["started_at"])
        assert (document["unmerged"], document["totals"]["tool_calls"]) == (1, 1)
        assert re.fullmatch("[0-9a-f]{16}", writer.pop("writer"))
        assert writer == {"pid": os.getpid(), "segments": 1, "bytes": 16384, "staged": 1}
        shown = call("show", directory).out
        assert f": running, owned by pid {os.getpid()} (" in shown
        assert re.search(rf"^ *{os.getpid()} .*\s+1\s+16 KiB\s+1$", shown, re.MULTILINE)
        assert shown.endswith("not in metrics.json yet: 1 record; its owner will merge\n")


def test_show_after_a_crash_counts_what_was_left_behind(call: Call, directory: Path) -> None:
    crash(directory)
    assert [call("show", directory, "--json").json[key] for key in ("state", "unmerged")] == ["not closed", 1]
    result = call("show", directory)
    assert result.row("make")[:3] == ["1", "1", "0"]
    assert "Live writers" not in result.out
    assert f"not in metrics.json yet: 1 record\nto merge: m31a-mp compact {directory}\n" in result.out


@pytest.mark.usefixtures("segments_at_once")
def test_session_with_a_stopped_worker_is_running_and_finished_when_it_is_dead(
    call: Call, directory: Path
) -> None:
    fill(directory)
    reading_end, writing_end = os.pipe()

    def work() -> None:
        attach(directory.name, directory.parent).record_tool_call("grep", True, 1)
        os.write(writing_end, b"!")
        signal.pause()

    with Forked(work) as worker:
        os.read(reading_end, 1)
        worker.stop()
        document = call("show", directory, "--json").json
        assert (document["state"], document["owner"]) == ("running", None)
        assert [writer["pid"] for writer in document["writers"]] == [worker.pid]
        assert re.search(rf"^ *{worker.pid} .* stopped ", call("show", directory).out, re.MULTILINE)
        worker.kill()
        document = call("show", directory, "--json").json
        assert (document["state"], document["writers"]) == ("finished", [])
        assert (document["unmerged"], document["totals"]["tool_calls"]) == (1, 5)
    os.close(reading_end)
    os.close(writing_end)


def test_show_of_a_bare_file_of_the_go_program(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.json"
    file.write_text(
        '{"session_id":"go","started_at":"2024-05-01T10:00:00.123456789Z","updated_at":"2024-05-01T10:00:01Z",'
        '"tools":[{"name":"bash","call_count":3,"success_count":2,"fail_count":1,"total_duration_ms":30,'
        '"avg_duration_ms":10}],"llms":null,"phases":[]}'
    )
    result = call("show", file)
    assert result.out.startswith(f"{file}: session go\nstarted 2024-05-01 10:00:00 UTC")
    assert result.row("bash") == ["3", "2", "1", "66.7 %", "10 ms", "-", "-", "-", "30 ms"]
    document = call("show", "elsewhere.json", "--json").json
    assert (document["session"], document["state"]) == (str(file), None)
    assert document["totals"]["tool_calls"] == 3


def test_show_of_a_metrics_json_without_its_session(call: Call, directory: Path, tmp_path: Path) -> None:
    fill(directory)
    (tmp_path / "metrics.json").write_bytes((directory / "metrics.json").read_bytes())
    assert call("show", "metrics.json").row("grep")[0] == "4"
    assert call("show", directory / "metrics.json").row("grep")[0] == "4"
    assert call("show", tmp_path).row("grep")[0] == "4"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"m31a_mp":{"version":9}}', "\udcff"])
def test_show_of_a_file_without_metrics_says_so(call: Call, tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_bytes(content.encode(errors="surrogateescape"))
    result = call("show", "file")
    assert (result.status, result.out) == (3, "")
    assert re.fullmatch(r"m31a-mp: .*file.*\nhint: .*\n", result.err)


def test_show_of_a_file_of_a_later_version_says_so(call: Call, directory: Path) -> None:
    fill(directory)
    file = directory / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"m31a_mp": {"version": 9}}))
    for named in (file, directory):
        result = call("show", named)
        assert (result.status, result.out) == (3, "")
        assert "is of version 9; this library reads 1" in result.err


def test_show_tells_what_was_set_aside_and_dropped(call: Call, directory: Path) -> None:
    fill(directory)
    (directory / "journal.ndjson").write_text("garbage\n")
    file = directory / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dropped": {"no_space": 1200}}))
    result = call("show", directory)
    assert (
        f"1 piece of damaged or invalid input set aside\nto see it: m31a-mp verify {directory}\n"
        in result.out
    )
    assert result.out.endswith("1,200 records dropped and not counted: no_space 1,200\n")
    totals = call("show", directory, "--json").json["totals"]
    assert (totals["rejected"], totals["dropped"]) == (1, 1200)


def test_names_cannot_steer_the_terminal(call: Call, directory: Path) -> None:
    recorder = attach(directory.name, directory.parent)
    recorder.record_tool_call("\x1b[31mred\n[bold]\u202eé", True, 1)
    out = call("show", directory).out
    assert r"\x1b[31mred\n[bold]\u202eé" in out
    assert "\x1b" not in out
    recorder.stop()


def test_show_of_an_empty_session(call: Call, directory: Path) -> None:
    Collector(directory.name, directory.parent).stop()
    assert call("show", directory).out.endswith("; nothing is recorded yet\n")


# --- ls -----------------------------------------------------------------------------------------------


def test_ls_has_a_row_for_every_session(call: Call, sessions: Path) -> None:
    fill(sessions / "finished")
    crash(sessions / "open")
    (sessions / "no session").mkdir()
    (sessions / "file").touch()
    with Collector("running", sessions):
        result = call("ls", sessions)
        listed = call("ls", sessions, "--json").json
    assert (result.status, result.err) == (0, "")
    assert result.row("open")[:2] == ["not closed", "-"]
    assert result.row("open")[4:] == ["-", "1", "0", "0", "-", "1"]
    assert result.row("finished")[:2] == ["finished", "-"]
    assert result.row("finished")[4:] == ["-", "4", "1", "1,100", "0.7500", "-"]
    assert result.row("running")[:2] == ["running", str(os.getpid())]
    assert len(result.out.splitlines()) == 5
    assert [Path(row["session"]).name for row in listed["sessions"]] == ["finished", "open", "running"]


def test_ls_json_is_of_the_form_that_is_promised(call: Call, directory: Path) -> None:
    fill(directory)
    metrics = call("show", directory, "--json").json["metrics"]
    document = call("ls", directory.parent, "--json").json
    assert document["sessions"][0].pop("totals") == call("show", directory, "--json").json["totals"]
    assert document == {
        "version": 1,
        "directory": str(directory.parent),
        "sessions": [
            {
                "session": str(directory),
                "state": "finished",
                "owner": None,
                "started_at": metrics["started_at"],
                "updated_at": metrics["updated_at"],
                "unmerged": 0,
                "unshared": None,
                "error": None,
            }
        ],
    }


def test_ls_goes_on_behind_a_damaged_session(call: Call, sessions: Path) -> None:
    fill(sessions / "whole")
    (sessions / "broken").mkdir()
    (sessions / "broken" / "metrics.json").write_text("damaged")
    result = call("ls", sessions)
    assert result.status == 1
    assert result.row("broken")[0] == "damaged"
    assert result.row("whole")[0] == "finished"
    broken, whole = call("ls", sessions, "--json").json["sessions"]
    assert broken["error"].startswith("it is not JSON")
    assert broken.keys() == whole.keys()
    assert broken["totals"] is None


def test_ls_of_a_session_says_that_it_is_one(call: Call, directory: Path) -> None:
    fill(directory)
    result = call("ls", directory)
    assert (result.status, result.out) == (3, "")
    assert result.err == (
        f"m31a-mp: {directory} is a session, not a directory of sessions\nhint: m31a-mp show {directory}\n"
    )


def test_file_of_a_newer_version_is_not_called_damaged(call: Call, sessions: Path) -> None:
    fill(sessions / "newer")
    fill(sessions / "whole")
    file = sessions / "newer" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"m31a_mp": {"version": 9}}))
    helps = "use the release that wrote it, or a later one"
    result = call("ls", sessions)
    assert result.status == 1
    assert result.row("newer")[0] == "newer version"
    assert result.row("whole")[0] == "finished"
    assert f"\nnewer: metrics.json is of version 9; this library reads 1; {helps}\n" in result.out
    assert "damaged" not in result.out
    newer, _ = call("ls", sessions, "--json").json["sessions"]
    assert (newer["state"], newer["totals"]) == (None, None)
    assert newer["error"].startswith("metrics.json is of version 9")
    for command in (("show",), ("show", "--json"), ("watch", "--count", "1"), ("compact",)):
        result = call(*command, file.parent)
        assert (result.status, result.out) == (3, "")
        message = f"m31a-mp: {file} is of version 9; this library reads 1\nhint: {helps}\n"
        assert result.err == message
    assert call("show", file).err.endswith(f"\nhint: {helps}\n")


def test_ls_tells_a_session_that_cannot_be_read_from_a_damaged_one(
    call: Call, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(directory)

    def deny(_: object) -> None:
        raise PermissionError(13, "Permission denied", "metrics.json")

    monkeypatch.setattr(ls, "status", deny)
    result = call("ls", directory.parent)
    assert (result.status, result.row("one")[0]) == (1, "unreadable")
    assert "Permission denied" in result.out


@pytest.mark.slow
def test_ls_tells_a_session_that_may_not_be_entered(directory: Path) -> None:
    fill(directory)
    closed = directory.parent / "closed"
    Collector("closed", directory.parent).stop()
    for mode, unreadable in ((0o000, closed), (0o444, closed / "segments")):
        closed.chmod(mode)
        done = subprocess.run(
            [sys.executable, "-m", "m31a_mp", "ls", str(directory.parent)],
            capture_output=True,
            text=True,
            preexec_fn=obey_permissions,
            check=False,
        )
        assert (done.returncode, done.stderr) == (1, "")
        [row] = [line for line in done.stdout.splitlines() if line.startswith("closed ")]
        assert row.split()[1] == "unreadable"
        assert f"closed: {unreadable}: Permission denied" in done.stdout


def test_ls_looks_where_the_session_of_the_environment_is_or_in_sessions(
    call: Call, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(directory)
    assert call("ls").status == 3
    os.symlink(directory.parent, "sessions")
    assert call("ls").row("one")
    os.unlink("sessions")
    monkeypatch.setenv("M31A_MP_SESSION", str(directory))
    assert call("ls").row("one")


def test_ls_of_nothing(call: Call, tmp_path: Path) -> None:
    assert call("ls", tmp_path) == Result(0, f"no sessions in {tmp_path}\n", "")
    result = call("ls", tmp_path / "none")
    assert (result.status, result.err.splitlines()[0]) == (
        3,
        f"m31a-mp: {tmp_path}/none: No such file or directory",
    )


# --- compact and verify -------------------------------------------------------------------------------


def test_compact_recovers_what_a_crash_left_behind(call: Call, directory: Path) -> None:
    crash(directory)
    assert call("compact", directory) == Result(0, f"{directory}: 1 record merged\n", "")
    assert call("compact", directory) == Result(0, f"{directory}: 0 records merged\n", "")
    document = call("show", directory, "--json").json
    assert (document["state"], document["unmerged"]) == ("finished", 0)
    metrics = load(directory.parent, directory.name)
    assert metrics
    assert [tool.name for tool in metrics.tools] == ["make"]


def test_compact_says_what_it_set_aside(call: Call, directory: Path) -> None:
    fill(directory)
    (directory / "journal.ndjson").write_text('{"event":"heal_trigger","phase":"plan"}\ngarbage\n')
    result = call("compact", directory, "--json")
    assert result.status == 1
    document = result.json
    assert document.pop("totals")["rejected"] == 1
    (rejected,) = document.pop("rejected")
    assert (rejected["file"], rejected["offset"]) == ("journal.000000000002.ndjson", 40)
    assert document == {
        "version": 1,
        "session": str(directory),
        "records": 1,
        "interrupted": 0,
        "unreadable": [],
    }
    (directory / "journal.ndjson").write_text("rubbish\n")
    lines = call("compact", directory).out.splitlines()
    assert lines[1].startswith("set aside: journal.000000000003.ndjson, byte 0: not JSON")
    assert lines[2].endswith("journal.rejected.ndjson")


@pytest.mark.slow
def test_compact_refuses_while_the_owner_lives(call: Call, directory: Path) -> None:
    with Collector(directory.name, directory.parent):
        result = call("compact", directory)
    assert (result.status, result.out) == (3, "")
    assert re.fullmatch(
        rf"m31a-mp: session 'one' is owned by pid {os.getpid()} .*\nhint: .*m31a-mp show {directory}\n",
        result.err,
    )


def test_compact_of_a_damaged_file_needs_to_be_told(call: Call, directory: Path) -> None:
    crash(directory)
    (directory / "metrics.json").write_text("damaged")
    result = call("compact", directory)
    assert (result.status, result.out) == (3, "")
    assert result.err.endswith(f": m31a-mp compact --rebuild {directory}\n")
    assert result.err.count("\n") == 2
    result = call("compact", "--rebuild", directory)
    assert result.status == 1
    assert result.out.startswith(f"{directory}: 1 record merged\nset aside: metrics.json.")


def test_verify_finds_nothing_in_a_crashed_session_and_damage_in_a_damaged_one(
    call: Call, directory: Path
) -> None:
    crash(directory)
    assert call("verify", directory) == Result(0, f"{directory}: all is well\n", "")
    assert call("verify", directory, "--json").json == {
        "version": 1,
        "session": str(directory),
        "findings": [],
    }
    (directory / "journal.ndjson").write_text("garbage\n")
    result = call("verify", directory)
    assert result.status == 1
    assert result.out.startswith(f"{directory}: 1 finding\njournal.ndjson, byte 0: not JSON")
    (finding,) = call("verify", directory, "--json").json["findings"]
    assert finding.keys() == {"file", "offset", "reason"}
    assert (finding["file"], finding["offset"]) == ("journal.ndjson", 0)


@pytest.mark.parametrize("state", ["running", "not closed", "damaged"])
def test_looking_changes_nothing(call: Call, directory: Path, state: str) -> None:
    crash(directory)
    (directory / "journal.ndjson").write_text("garbage\n")
    owner = Collector(directory.name, directory.parent) if state == "running" else None
    attach(directory.name, directory.parent).record_tool_call("grep", True, 1)
    if state == "damaged":
        (directory / "metrics.json").write_text("damaged")
    before = on_disk(directory.parent)
    for command in ("show", "verify", "watch"):
        call(command, directory, *(["--count", "2", "--interval", "0.05"] if command == "watch" else []))
    call("show", directory / "metrics.json")
    call("ls", directory.parent)
    assert on_disk(directory.parent) == before
    if owner:
        owner.stop()


# --- record -------------------------------------------------------------------------------------------


def test_record_of_every_kind(call: Call, directory: Path) -> None:
    at = ("--session", directory)
    for arguments in [
        ("tool", "make", "--failed", "--duration-ms", "420"),
        ("tool", "make", "--ok", "--duration-ms", "80"),
        ("llm", "plan", "--prompt-tokens", "9", "--completion-tokens", "1", "--cost", "0.5"),
        ("llm", "plan", "--prompt-tokens", "9", "--completion-tokens", "1", "--total-tokens", "99"),
        ("phase", "plan"),
        ("phase", "plan", "--ok", "--duration-ms", "8300"),
        ("heal", "plan"),
        ("bisect", "plan"),
        ("cancellation", "plan", "timeout"),
    ]:
        assert call("record", *arguments, *at) == Result(0, "", "")
    metrics = attach(directory.name, directory.parent).snapshot()
    (tool,) = metrics.tools
    assert (tool.name, tool.success_count, tool.fail_count, tool.total_duration_ms) == ("make", 1, 1, 500)
    (llm,) = metrics.llms
    assert (llm.phase, llm.prompt_tokens, llm.completion_tokens, llm.total_tokens) == ("plan", 18, 2, 109)
    assert (llm.cost, llm.interaction_count) == (0.5, 2)
    (phase,) = metrics.phases
    assert (phase.phase, phase.duration_ms, phase.success) == ("plan", 8300, True)
    assert (phase.transition_count, phase.heal_trigger_count, phase.bisect_trigger_count) == (1, 1, 1)
    (cancellation,) = metrics.cancellations
    assert (cancellation.phase, cancellation.reason, metrics.cancellation_count) == ("plan", "timeout", 1)
    assert not list((directory / "segments").iterdir())  # a script that records often leaves no heap


def test_show_has_the_latest_happenings_and_how_many_there_were(call: Call, directory: Path) -> None:
    with attach(directory.name, directory.parent) as recorder:
        for i in range(12):
            recorder.record_cancellation("plan", f"reason-{i}")
    result = call("show", directory)
    assert "Cancellations, the latest 10 of 12\n" in result.out
    assert result.row("plan") == ["reason-2", "0 s"]
    assert "reason-1 " not in result.out
    assert "reason-11" in result.out


def test_record_finds_its_session_in_the_environment_or_before_the_kind(
    call: Call, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("record", "--session", directory, "heal", "plan").status == 0
    monkeypatch.setenv("M31A_MP_SESSION", str(directory.with_name("two")))
    assert call("record", "heal", "plan").status == 0
    assert call("record", "heal", "plan", "--session", directory).status == 0
    assert call("record", "--session", directory, "heal", "plan").status == 0
    assert call("record", "--session", directory, "heal", "--", "plan").status == 0  # which click reads
    listed = call("ls", directory.parent, "--json").json["sessions"]
    assert [(Path(row["session"]).name, row["unmerged"]) for row in listed] == [("one", 4), ("two", 1)]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nothing",),
        ("tool",),
        ("tool", "make", "--duration-ms", "1"),
        ("tool", "make", "--ok"),
        ("tool", "make", "--ok", "--duration-ms", "-1"),
        ("tool", "make", "--ok", "--duration-ms", "1.5"),
        ("tool", "make", "--ok", "--duration-ms", str(1 << 63)),
        ("tool", "", "--ok", "--duration-ms", "1"),
        ("tool", "x" * 4097, "--ok", "--duration-ms", "1"),
        ("tool", "\udcff", "--ok", "--duration-ms", "1"),
        ("phase", "plan", "--ok"),
        ("phase", "plan", "--duration-ms", "1"),
        ("llm", "plan"),
        ("llm", "plan", "--prompt-tokens", "1", "--completion-tokens", "1", "--cost", "nan"),
        ("llm", "plan", "--prompt-tokens", "1", "--completion-tokens", "1", "--cost", "-1"),
    ],
)
def test_record_called_wrongly_records_nothing(
    call: Call, directory: Path, arguments: tuple[str, ...]
) -> None:
    result = call("record", "--session", directory, *arguments)
    assert (result.status, result.out) == (2, "")
    assert re.fullmatch(r"m31a-mp: .+\nhint: .+\n", result.err)
    assert not directory.exists()


def test_record_that_is_not_kept_is_an_error(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = call("record", "heal", "plan", "--session", "file")
    assert (result.status, result.out) == (3, "")
    assert re.match(r"m31a-mp: not recorded: .*file is not a directory", result.err)


def test_record_into_a_directory_of_sessions_is_an_error(call: Call, sessions: Path) -> None:
    fill(sessions / "one")
    result = call("record", "--session", sessions, "heal", "plan")
    message = f"m31a-mp: {sessions} is no session; it holds a session\nhint: m31a-mp ls {sessions}\n"
    assert (result.status, result.out, result.err) == (3, "", message)
    assert os.listdir(sessions) == ["one"]
    (sessions / "empty").mkdir()
    assert call("record", "--session", sessions / "empty", "heal", "plan").status == 0


def test_record_in_a_deleted_working_directory_is_an_error(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = call("record", "heal", "plan", "--session", "one")
    assert (result.status, result.out) == (3, "")
    hint = "hint: name the session by its full path"
    assert result.err == f"m31a-mp: not recorded: No such file or directory\n{hint}\n"
    assert call("record", "heal", "plan", "--session", tmp_path / "one").status == 0


# --- names, help, errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["show", "watch", "compact", "verify"])
def test_session_that_is_not_named_or_not_there(call: Call, command: str, tmp_path: Path) -> None:
    result = call(command)
    assert (result.status, result.out) == (2, "")
    if command == "compact":
        assert result.err == "m31a-mp: no session is named\nhint: m31a-mp compact sessions/NAME\n"
    else:
        assert result.err == (
            "m31a-mp: no session is named, and there is none in ./sessions\n"
            "hint: this makes one: m31a-mp run -- COMMAND\n"
        )
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        result = call(command, name)
        assert (result.status, result.out) == (3, "")
        assert result.err == (
            f"m31a-mp: there is no session in {tmp_path}/{name}\n"
            f"hint: this makes one: m31a-mp run --session {name} -- COMMAND\n"
        )
    fill(tmp_path / "sessions" / "my mine")
    if command == "compact":  # which changes something: only what was named
        assert call(command).err.endswith(f"\nhint: m31a-mp {command} 'sessions/my mine'\n")
    for name, hint in {
        "none": "m31a-mp ls sessions",
        "my mine": f"did you mean: m31a-mp {command} 'sessions/my mine'",
        "sessions/mymine": f"did you mean: m31a-mp {command} 'sessions/my mine'",
        "sessions/other": "m31a-mp ls sessions",
        "sessions/my mine/none": f"m31a-mp {command} 'sessions/my mine'",
        "sessions/my mine/metrics.json/none": "m31a-mp ls sessions",
    }.items():
        result = call(command, name)
        assert (result.status, result.out) == (3, "")
        assert result.err == f"m31a-mp: there is no session in {tmp_path}/{name}\nhint: {hint}\n"
    assert not list((tmp_path / "empty").iterdir())
    assert call(command, "x" * 201).status == 2
    assert call(command, "/").status == 2


@pytest.mark.parametrize("command", ["show", "watch", "compact", "verify"])
def test_directory_of_sessions_is_not_taken_for_one(call: Call, command: str, sessions: Path) -> None:
    fill(sessions / "one")
    result = call(command, sessions)
    assert (result.status, result.out) == (3, "")
    message = f"m31a-mp: {sessions} is no session; it holds a session\nhint: m31a-mp ls {sessions}\n"
    assert result.err == message
    fill(sessions / "two")
    assert "; it holds 2 sessions\n" in call(command, sessions).err


@pytest.mark.parametrize("command", ["show", "watch", "compact", "verify"])
def test_directory_above_the_sessions_leads_to_them(call: Call, command: str, tmp_path: Path) -> None:
    fill(tmp_path / "my node" / "sessions" / "one")
    listing = "m31a-mp ls 'my node/sessions'"
    assert call(command, "my node") == Result(
        3, "", f"m31a-mp: there is no session in {tmp_path}/my node\nhint: {listing}\n"
    )
    assert call("ls", "my node") == Result(
        0, f"no sessions in {tmp_path}/my node\nto list those one level down: {listing}\n", ""
    )


@pytest.mark.parametrize("command", ["show", "watch", "verify", "report"])
def test_somebody_in_the_wrong_directory_is_told_where_the_sessions_are(
    call: Call, command: str, sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sessions / "one")
    monkeypatch.chdir(sessions / "one")
    assert call(command).err.endswith(f"\nhint: m31a-mp {command} .\n")
    assert call("ls").err.endswith("\nhint: m31a-mp show .\n")
    monkeypatch.chdir(sessions)
    assert call(command).err.endswith("\nhint: m31a-mp ls .\n")
    for other in ("ls", "serve"):
        assert call(other).err.endswith(f"\nhint: m31a-mp {other} .\n")


@pytest.mark.parametrize("command", ["ls", "serve"])
def test_hint_makes_a_session_in_the_directory_that_was_named(call: Call, command: str) -> None:
    assert call(command).err.endswith("\nhint: this makes a session there: m31a-mp run -- COMMAND\n")
    hint = "this makes a session there: m31a-mp run --session other/NAME -- COMMAND"
    assert call(command, "other").err.endswith(f"\nhint: {hint}\n")
    fill(Path("sessions/one").absolute())
    assert call(command, "other").err.endswith(f"\nhint: m31a-mp {command} sessions\n")


@pytest.mark.slow
def test_lack_of_a_permission_is_told_as_such(tmp_path: Path) -> None:
    sessions = tmp_path / "sessions"
    fill(sessions / "one")

    def told(*arguments: str) -> str:
        command = [sys.executable, "-m", "m31a_mp", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, preexec_fn=obey_permissions, check=False, cwd=tmp_path
        )
        assert done.returncode
        return done.stderr

    (sessions / "one" / "segments").chmod(0)
    hint = "run this as a user who has that permission"
    assert told("show") == f"m31a-mp: {sessions}/one/segments: Permission denied\nhint: {hint}\n"
    (sessions / "one").chmod(0)
    reason = f"not recorded: {sessions}/one/segments: Permission denied"
    assert told("record", "--session", "sessions/one", "heal", "plan").startswith(f"m31a-mp: {reason}\n")
    sessions.chmod(0)
    assert told("show").startswith("m31a-mp: no session is named, and ./sessions may not be read\n")
    assert told("ls") == (
        f"m31a-mp: {sessions}: Permission denied\n"
        "hint: run this as the user whose session it is: others may not read it\n"
    )
    sessions.chmod(0o700)
    (sessions / "one").chmod(0o700)


@pytest.mark.parametrize("command", [("show",), ("watch", "--count", "1"), ("verify",)])
def test_without_a_name_the_session_is_the_one_that_was_used_last(
    call: Call, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = Path("sessions").absolute()
    for name in ("early", "latest", "middle"):
        fill(sessions / name)
    for hour, name in enumerate(["early", "middle", "latest"]):
        for path in [*(sessions / name).rglob("*"), sessions / name]:
            os.utime(path, (3600 * hour, 3600 * hour))
    assert call(*command).out.startswith(f"{sessions}/latest: ")
    (sessions / "latest" / "metrics.json").unlink()
    for path in (sessions / "latest", sessions / "middle"):
        os.utime(path, (0, 0))
    os.utime(sessions / "middle" / "metrics.json", (9000, 9000))  # a file in it says more than the directory
    assert call(*command).out.startswith(f"{sessions}/middle: ")
    with Collector("early", sessions):
        for path in [*(sessions / "early").rglob("*"), sessions / "early"]:
            os.utime(path, (0, 0))
        assert call(*command).out.startswith(f"{sessions}/early: ")  # what lives is in use now
        monkeypatch.setenv("M31A_MP_SESSION", str(sessions / "latest"))
        assert call(*command).out.startswith(f"{sessions}/latest: ")


def test_session_is_found_by_the_environment_a_relative_path_and_a_symlink(
    call: Call, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(directory)
    os.symlink(directory, "latest")
    assert call("show", "latest").out.startswith(f"{directory}: finished")
    monkeypatch.setenv("M31A_MP_SESSION", str(directory))
    assert call("show").out.startswith(f"{directory}: finished")
    monkeypatch.chdir(directory)
    assert call("show", ".").out.startswith(f"{directory}: finished")


@pytest.mark.parametrize(
    "command", [*((name,) for name in COMMANDS), *(("record", name) for name in RECORDS)]
)
def test_every_command_has_help_with_an_example(call: Call, command: tuple[str, ...]) -> None:
    result = call(*command, "--help")
    assert (result.status, result.err) == (0, "")
    assert re.search(rf"Examples?:\n(.*\n)*?  .*m31a-mp {' '.join(command)} ", result.out)


def test_help_of_the_program_lists_commands_and_exit_statuses(call: Call) -> None:
    result = call("--help")
    assert result.out == call().out
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\w", result.out, re.MULTILINE)
    for status in ("0 ", "1 ", "2 ", "3 ", "125", "126", "127", "128\\+N"):
        assert re.search(rf"^ +{status}  +\w", result.out, re.MULTILINE)
    assert call("--version").out.startswith("m31a-mp, version ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["shwo"], "'shwo'; did you mean show?"),
        (["wathc", "sessions"], "'wathc'; did you mean watch?"),
        (["record", "tol"], "'tol'; did you mean tool?"),
        (["nothing"], "'nothing'"),
        (["\x1b[31m"], r"'\x1b[31m'"),
    ],
)
def test_mistyped_command_names_the_one_that_was_meant(
    call: Call, arguments: list[str], expected: str
) -> None:
    result = call(*arguments)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"m31a-mp: there is no command {expected}\nhint: m31a-mp ")


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["--nothing"], ["show", "--compare", "a"], ["watch", "a", "b"], ["ls", "--nothing"]],
)
def test_wrong_usage_is_one_line_and_a_hint(call: Call, arguments: list[str]) -> None:
    result = call(*arguments)
    assert (result.status, result.out) == (2, "")
    assert re.fullmatch(r"m31a-mp: .+\nhint: m31a-mp.* --help\n", result.err)


def test_error_that_nobody_thought_of_is_one_line_too(
    call: Call, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(directory)
    monkeypatch.setattr(showing, "status", refuse)
    result = call("show", directory)
    assert (result.status, result.out) == (3, "")
    assert re.fullmatch(r"m31a-mp: KeyError in test_cli\.py:\d+: 'x'\nhint: .*bug.*\n", result.err)


# --- The program --------------------------------------------------------------------------------------


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_importing_the_library_imports_nothing_of_the_command_line() -> None:
    code = "import m31a_mp, sys; print({n.partition('.')[0] for n in sys.modules} & {'click', 'rich'})"
    assert python(code).stdout == "set()\n"


_WITHOUT = """
import runpy, sys
missing = sys.argv.pop(1).split(",")
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in missing:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
runpy.run_module("m31a_mp", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("missing", ["click", "rich", "click,rich"])
def test_without_the_extra_one_line_says_how_to_install_it(missing: str, tmp_path: Path) -> None:
    result = python(_WITHOUT, missing, "run", "--", "touch", tmp_path / "file")
    assert (result.returncode, result.stdout) == (125, "")
    project = tomllib.loads((Path(__file__).parent.parent.parent / "pyproject.toml").read_text())["project"]
    needed = [r for r in project["optional-dependencies"]["cli"] if r.partition(">")[0] in missing.split(",")]
    names, verb = missing.replace(",", " and "), "are" if "," in missing else "is"
    assert result.stderr == (
        f"m31a-mp: {names} {verb} not installed\n"
        f"hint: {shlex.join([sys.executable, '-m', 'pip', 'install', *needed])}\n"
    )
    assert not (tmp_path / "file").exists()


@pytest.mark.slow
@pytest.mark.parametrize("full", [True, False])
def test_output_that_cannot_be_written(directory: Path, full: bool) -> None:
    fill(directory)
    command = [sys.executable, "-m", "m31a_mp", "show", str(directory)]
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    with open("/dev/full", "wb") as device:
        result = subprocess.run(
            command, stdout=device if full else writing_end, stderr=subprocess.PIPE, text=True, check=False
        )
    os.close(writing_end)
    if full:
        assert result.returncode == 3
        assert re.fullmatch(
            r"m31a-mp: the output cannot be written: No space left on device\nhint: .*\n", result.stderr
        )
    else:
        assert (result.returncode, result.stderr) == (128 + 13, "")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_locale_without_the_characters_of_tables_gets_others_and_formats_stay_utf8(
    directory: Path, encoding: str
) -> None:
    with Collector("one", directory.parent) as collector:
        collector.record_tool_call("größe " + "x" * 300, True, 1)
    environment = {**os.environ, "PYTHONIOENCODING": encoding}

    def output(*arguments: str | Path) -> bytes:
        command = [sys.executable, "-m", "m31a_mp", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, check=True, env=environment).stdout

    shown = output("show", directory).decode(encoding)
    [rule] = [line for line in shown.splitlines() if line.startswith("---")]
    assert set(rule) == {"-"}
    assert "x~x" in shown  # the mark of a cut name
    assert ("größe " if encoding == "latin-1" else r"gr\xf6\xdfe ") in shown
    assert json.loads(output("show", directory, "--json"))["metrics"]["tools"][0]["name"].startswith("größe ")
    assert "größe ".encode() in output("export", "prometheus", directory)


# --- Completion ---------------------------------------------------------------------------------------


def completed(line: str, where: Path) -> list[str]:
    """What a shell is told of the last word of a line: each a type and a value."""
    words = line.split(" ")
    result = subprocess.run(
        [sys.executable, "-m", "m31a_mp"],
        env=os.environ
        | {"_M31A_MP_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split("\n")[:-1]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A directory with two sessions in `sessions`, and one elsewhere."""
    for name in ("sessions/one", "sessions/other", "runs/mine"):
        fill(tmp_path / name)
    (tmp_path / "sessions" / "no session").mkdir()
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        *("show", "watch", "verify", "compact", "compact --rebuild", "show --json"),
        *("run --session", "record --session", "record tool --session", "record tool make --session"),
    ],
)
def test_every_command_that_takes_a_session_completes_it(two: Path, command: str) -> None:
    assert completed(f"m31a-mp {command} sess", two) == ["plain,sessions/one", "plain,sessions/other"]
    assert completed(f"m31a-mp {command} runs/", two) == ["plain,runs/mine"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["show", "run --session"])
def test_session_is_completed_however_its_path_begins(two: Path, command: str) -> None:
    both = ["plain,sessions/one", "plain,sessions/other"]
    assert completed(f"m31a-mp {command} ", two) == both
    assert completed(f"m31a-mp {command} sess", two) == both
    assert completed(f"m31a-mp {command} sessions/ot", two) == ["plain,sessions/other"]
    assert completed(f"m31a-mp {command} runs/", two) == ["plain,runs/mine"]
    assert completed(f"m31a-mp {command} ./sessions/on", two) == ["plain,./sessions/one"]
    assert completed(f"m31a-mp {command} {two}/se", two) == [
        f"plain,{two}/sessions/{name}" for name in ("one", "other")
    ]
    assert completed(f"m31a-mp {command} ru", two) == ["file,ru"]  # the shell goes on by itself


@pytest.mark.slow
def test_other_words_are_completed(two: Path) -> None:
    assert completed("m31a-mp ls se", two) == ["dir,se"]
    assert completed("m31a-mp run -- tes", two) == ["file,tes"]
    assert completed("m31a-mp w", two) == ["plain,watch"]
    assert set(completed("m31a-mp ", two)) == {f"plain,{name}" for name in COMMANDS}
    assert completed("m31a-mp record bi", two) == ["plain,bisect", "plain,bisect-outcome"]
    assert completed("m31a-mp show --js", two) == ["plain,--json"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_as_the_readme_has_it_works_in_bash(two: Path) -> None:
    readme = (Path(__file__).parent.parent.parent / "src/m31a_mp/cli/README.md").read_text()
    (line,) = re.findall(r"^ +(eval .*bash_source.*m31a-mp.*?)(?:  .*)?$", readme, re.MULTILINE)
    press_tab = "COMP_WORDS=(m31a-mp show sessions/o) COMP_CWORD=2; _m31a_mp_completion m31a-mp"
    result = subprocess.run(
        ["bash", "-c", f'{line}\n{press_tab} 2>&1\necho "${{COMPREPLY[@]}}"\ncomplete -p m31a-mp'],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        cwd=two,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[0] == "sessions/one sessions/other"
    assert "m31a-mp" in result.stdout.splitlines()[1]
    assert result.stderr == ""


# --- Progress -----------------------------------------------------------------------------------------


def test_reading_is_told_by_the_open_files(session: Session) -> None:
    assert reading(session) == Reading(0, 0)
    Path(session.sealed_as(1)).write_bytes(b"x" * 1000)
    Path(session.sealed_as(2)).write_bytes(b"x" * 100)
    Path(session.journal).write_bytes(b"x" * 10)
    assert reading(session) == Reading(0, 1110)
    with Path(session.sealed_as(1)).open("rb", buffering=0) as stream:
        stream.read(400)
        assert reading(session) == Reading(400, 1110)
    with (
        Path(session.journal).open("rb", buffering=0) as live,
        Path(session.sealed_as(2)).open("rb", buffering=0) as stream,
    ):
        stream.read(50)
        assert reading(session) == Reading(1050, 1110)
        live.read(10)
        assert reading(session) == Reading(1110, 1110)


def test_no_progress_bar_in_a_pipe(call: Call, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0)
    crash(directory)
    assert call("verify", directory).err == ""
    assert call("compact", directory).err == ""
    assert isinstance(load(directory.parent, directory.name), SessionMetrics)


@pytest.mark.slow
def test_path_that_is_not_utf8_is_text_in_json(tmp_path: Path) -> None:
    sessions = os.fsencode(tmp_path) + b"/\xff"
    run = [sys.executable, "-m", "m31a_mp"]
    subprocess.run(
        [*run, "run", "--session", sessions + b"/s", "--", "true"], check=True, capture_output=True
    )
    for command in ("show", "verify", "compact"):
        done = subprocess.run([*run, command, "--json", sessions + b"/s"], check=True, capture_output=True)
        assert orjson.loads(done.stdout)["session"].endswith("/\\xff/s")
