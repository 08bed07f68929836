"""`m31a-mp` past one machine: share, gather, and `--from` of those that show."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import orjson
import pytest
from test_cli_run import ENVIRONMENT, PROGRAM

from m31a_mp import Collector, attach, gather, load
from m31a_mp.cli import main
from metrics_of import SESSION, count
from servers import Server, waited_for


def cli(*arguments: object, status: int = 0, **environment: str) -> str:
    """Run a command to its end; return its output, of stdout and stderr."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=ENVIRONMENT | environment,
        timeout=60,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def record(directory: Path, calls: int) -> Path:
    with Collector(SESSION, directory) as collector:
        for i in range(calls):
            collector.record_tool_call("bash", i > 0, i)
    return directory / SESSION


def gathered(url: str) -> int:
    try:
        return count(gather(SESSION, url))
    except (FileNotFoundError, OSError):
        return 0


@pytest.mark.slow
def test_sites_are_shared_and_shown_together(url: str, tmp_path: Path) -> None:
    for i in range(3):
        told = cli("share", "--once", record(tmp_path / str(i), i + 1), "--to", url)
        assert "shared with" in told
    told = cli("show", SESSION, "--from", url)
    assert "gathered from" in told
    assert "bash" in told
    document = orjson.loads(cli("show", SESSION, "--from", url, "--json"))
    assert document["totals"]["tool_calls"] == 6
    assert len(document["metrics"]["sites"]) == 3
    [line] = cli("watch", SESSION, "--from", url, "--json", "--count", 1).splitlines()
    assert orjson.loads(line)["totals"] == document["totals"]
    listed = orjson.loads(cli("ls", "--from", url, "--json"))
    assert [(one["session"], one["sites"], one["error"]) for one in listed["sessions"]] == [
        (SESSION, 3, None)
    ]
    assert SESSION in cli("ls", "--from", url)
    assert cli("show", "--from", url).splitlines()[0] == told.splitlines()[0]  # it is the only one


@pytest.mark.slow
def test_store_of_the_environment_is_used(url: str, tmp_path: Path) -> None:
    cli("run", "--session", tmp_path / SESSION, "--", "true", M31A_MP_SHARE=url)
    assert gathered(url) == 1
    cli("gather", SESSION, "--into", tmp_path / "into", M31A_MP_SHARE=url)
    assert count(load(tmp_path / "into", SESSION)) == 1


@pytest.mark.slow
def test_gathered_session_is_on_disk_and_can_be_shared_in_turn(url: str, tmp_path: Path) -> None:
    for i in range(2):
        cli("share", "--once", record(tmp_path / str(i), 2), "--to", url)
    into = tmp_path / "into"
    assert "2 sites, 4 tool calls" in cli("gather", SESSION, "--from", url, "--into", into)
    assert len(list((into / SESSION / "sites").iterdir())) == 2
    assert "all is well" in cli("verify", into / SESSION)
    larger = str(tmp_path / "larger")
    cli("share", "--once", into / SESSION, "--to", larger)
    cli("share", "--once", record(tmp_path / "2", 3), "--to", larger)
    whole = gather(SESSION, larger)
    assert count(whole) == 7
    assert sorted(site.sites for site in whole.sites) == [0, 2]
    titles = [
        next(
            line.split()
            for line in cli("show", SESSION, "--from", store).splitlines()
            if line.startswith("site ")
        )
        for store in (larger, url)
    ]
    assert [names[-1] for names in titles] == ["sites", "rejected"]  # of gathered sessions, if there is one
    # Nothing is counted twice if it is shared where it was gathered.
    cli("share", "--once", into / SESSION, "--to", url)
    cli("gather", SESSION, "--from", url, "--into", into)
    assert count(gather(SESSION, url)) == count(load(into, SESSION)) == 4


@pytest.mark.slow
def test_gathered_session_takes_no_records(url: str, tmp_path: Path) -> None:
    cli("share", "--once", record(tmp_path, 1), "--to", url)
    cli("gather", SESSION, "--from", url, "--into", tmp_path / "into")
    told = cli("compact", tmp_path / "into" / SESSION, status=3)
    assert "gathered from sites" in told
    told = cli("gather", SESSION, "--from", url, "--into", tmp_path, status=3)
    assert "records of its own" in told


@pytest.mark.slow
def test_what_cannot_be_counted_ends_with_1(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for i in range(2):
        cli("share", "--once", record(tmp_path / str(i), 1), "--to", store)
    min((store / SESSION).iterdir()).write_bytes(b"garbage")
    told = cli("gather", SESSION, "--from", store, "--into", tmp_path / "into", status=1)
    assert "not counted: it is not a state of a session" in told
    assert "not counted" in cli("show", SESSION, "--from", store)
    cli("ls", "--from", store, status=1)


@pytest.mark.slow
def test_session_that_cannot_be_read_costs_only_its_own_row(server: Server, tmp_path: Path) -> None:
    server.do("FLUSHALL")
    cli("share", "--once", record(tmp_path, 2), "--to", server.url)
    server.do("SET", "m31a_mp:{other}:sites", "a value of another type")
    told = cli("ls", "--from", server.url, status=1)
    assert "other: " in told
    assert "another type" in told
    other, good = orjson.loads(cli("ls", "--from", server.url, "--json", status=1))["sessions"]
    assert (other["session"], other["sites"], other["totals"]) == ("other", None, None)
    assert "another type" in other["error"]
    assert (good["session"], good["totals"]["tool_calls"], good["error"]) == (SESSION, 2, None)


@pytest.mark.slow
def test_numbers_of_sites_that_cannot_be_counted_are_not_known(tmp_path: Path) -> None:
    store = tmp_path / "store"
    cli("share", "--once", record(tmp_path, 2), "--to", store)
    next((store / SESSION).iterdir()).write_bytes(b"garbage")
    told = cli("ls", "--from", store, "--json", status=1)
    [row] = orjson.loads(told[told.index("{") :])["sessions"]  # a warning stands before it
    assert (row["sites"], row["started_at"], row["totals"]) == (1, None, None)
    assert "not counted" in row["error"]
    rows = [line.split() for line in cli("ls", "--from", store, status=1).splitlines()]
    assert [SESSION, "1", *["-"] * 7] in rows
    rows = [line.split() for line in cli("show", SESSION, "--from", store).splitlines()]
    assert [cells[1:] for cells in rows if len(cells) == 8] == [["-"] * 7]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["show", "s", "--from", "http://x"], 2, "no store"),
        (["show", "other", "--from", "{store}"], 3, "no site has shared session 'other'"),
        (["show", "s", "--from", "{tmp}/none"], 3, "no such directory"),
        (["show", "--from", "{store}"], 2, "2 sessions are shared there"),
        (["share", "{tmp}/s"], 2, "M31A_MP_SHARE is not set"),
        (["share", "{tmp}/s", "--to", "redis://:secret@127.0.0.1:1", "--once"], 3, "connection refused"),
        (["share", "{tmp}/s", "--to", "h:6379"], 2, "redis://h:6379, or the directory ./h:6379"),
        (["show", "s", "--from", "h:6379"], 2, "redis://h:6379, or the directory ./h:6379"),
        (["share", "{tmp}/s", "--to", "redis://:secret@h?foo=1"], 2, "of a store has no option 'foo'"),
        (["gather", "s", "--into", "{tmp}"], 2, "M31A_MP_SHARE is not set"),
        (["ls", "{tmp}", "--from", "{store}"], 2, "takes no directory"),
        (["ls", "--from", "http://x"], 2, "hint: m31a-mp ls --help"),
        (["ls", "--from", ""], 2, "the URL is empty"),
        (["share", "{tmp}/s", "--to", ""], 2, "the URL is empty"),
        (["show", "other", "--from", "{store}"], 3, "hint: m31a-mp ls --from {store}"),
        (["watch", "other", "--from", "{store}"], 3, "hint: m31a-mp ls --from {store}"),
        (["gather", "a", "--from", "{store}", "--into", "{tmp}/s"], 2, "s is a session"),
    ],
)
def test_mistakes_are_told(arguments: list[str], status: int, told: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name in ("a", "b"):
        Collector(name, tmp_path, share=store).stop()
    record(tmp_path, 1)
    text = cli(*(a.format(store=store, tmp=tmp_path) for a in arguments), status=status)
    assert told.format(store=store) in text
    assert "secret" not in text


@pytest.mark.slow
def test_session_that_nobody_shares_is_not_gathered_as_an_empty_one(url: str, tmp_path: Path) -> None:
    cli("share", "--once", record(tmp_path / "one", 1), "--to", url)
    told = cli("gather", "other", "--from", url, "--into", tmp_path / "into", status=3)
    assert "no site has shared session 'other'" in told
    assert not (tmp_path / "into").exists()


@pytest.mark.slow
def test_store_that_is_taken_for_sessions_leads_to_from(tmp_path: Path) -> None:
    store = tmp_path / "my store"
    cli("share", "--once", record(tmp_path / "one", 1), "--to", store)
    listing = f"m31a-mp ls --from '{store}'\n"
    looking = f"m31a-mp show {SESSION} --from '{store}'\n"
    for command in ("show", "verify", "share"):
        assert cli(command, store, status=3).endswith(f"\nhint: {listing}")
        assert cli(command, store / SESSION, status=3).endswith(f"\nhint: {looking}")
    for directory, hint in ((store, listing), (store / SESSION, looking)):
        told = cli("ls", directory)
        assert told == f"no sessions in {directory}\nto look at what is shared there: {hint}"
        assert cli(*shlex.split(hint)[1:])


@pytest.mark.slow
def test_session_that_could_not_be_shared_is_told(server: Server, tmp_path: Path) -> None:
    with Collector(SESSION, tmp_path, share=f"unix://:secret@{tmp_path}/none") as collector:
        collector.record_tool_call("bash", True, 1)
    for command in (["show", tmp_path / SESSION], ["ls", tmp_path]):
        told = cli(*command)
        assert "not shared for" in told
        assert "no such file" in told
        assert "secret" not in told
    assert "the session has not been shared since" in cli("verify", tmp_path / SESSION, status=1)
    cli("share", "--once", tmp_path / SESSION, "--to", server.url)
    cli("verify", tmp_path / SESSION)
    assert "not shared" not in cli("show", tmp_path / SESSION)


def test_run_that_could_not_share_says_how_to_do_it(tmp_path: Path) -> None:
    store, session = f"unix://{tmp_path}/none", tmp_path / SESSION
    told = cli("run", "--session", session, "--", "true", M31A_MP_SHARE=store)
    assert told == (
        f"m31a-mp: the end of session {session} is not shared: {store}: no such file or directory. "
        f"To share it: m31a-mp share --once --to {store} {session}\n"
    )


@pytest.fixture
def beside(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a command that goes on until a signal."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [*PROGRAM, *map(str, arguments)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=tmp_path)

    return start


@pytest.mark.slow
def test_sidecar_merges_without_an_owner_and_beside_one(
    url: str, tmp_path: Path, beside: Callable[..., subprocess.Popen[str]]
) -> None:
    record(tmp_path, 1)
    with beside("share", tmp_path / SESSION, "--to", url, "--interval", 0.05) as sidecar:
        try:
            waited_for(lambda: gathered(url) == 1)
            attach(SESSION, tmp_path).record_tool_call("bash", True, 1)
            waited_for(lambda: gathered(url) == 2)
            with Collector(SESSION, tmp_path) as owner:  # the sidecar is not in its way
                owner.record_tool_call("bash", True, 1)
                owner.flush()
                waited_for(lambda: gathered(url) == 3)
            attach(SESSION, tmp_path).record_tool_call("bash", True, 1)
        finally:
            sidecar.send_signal(signal.SIGINT)
        assert sidecar.wait() == 0
        assert sidecar.stderr
        assert sidecar.stderr.read() == f"m31a-mp: sharing {tmp_path / SESSION} with {url}\n"
    assert gathered(url) == 4


@pytest.mark.slow
def test_follower_goes_on_while_the_store_is_away(
    server: Server, tmp_path: Path, beside: Callable[..., subprocess.Popen[str]]
) -> None:
    server.do("FLUSHALL")
    site = record(tmp_path, 1)
    cli("share", "--once", site, "--to", server.url)
    into = tmp_path / "into"
    arguments = ("gather", SESSION, "--from", server.url, "--into", into, "--follow", "--interval", 0.05)
    with beside(*arguments) as follower:
        try:
            waited_for(lambda: (into / SESSION / "metrics.json").exists() and count(load(into, SESSION)) == 1)
            server.restart()  # it is empty now
            record(tmp_path, 2)
            cli("share", "--once", site, "--to", server.url)
            waited_for(lambda: count(load(into, SESSION)) == 3)
        finally:
            follower.send_signal(signal.SIGTERM)
        assert follower.wait() == 128 + signal.SIGTERM
        assert follower.stderr
        assert follower.stderr.readline() == f"m31a-mp: gathering into {into / SESSION}\n"


def test_a_missing_package_is_told() -> None:
    program = (
        "import sys; sys.modules['redis'] = None\n"
        "from m31a_mp import gather\n"
        "try: gather('s', 'redis://host')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'm31a_mp[redis]'" in done.stdout


@pytest.mark.parametrize(
    "command", [["show", "s", "--from"], ["ls", "--from"], ["gather", "--into", "g", "--from"]]
)
def test_a_missing_package_is_told_by_the_command_line_as_of_any_extra(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "m31a_mp.sharing.server", raising=False)
    assert main([*command, "redis://host"]) == 125
    hint = shlex.join([sys.executable, "-m", "pip", "install", "redis>=6"])
    assert capsys.readouterr().err == f"m31a-mp: redis is not installed\nhint: {hint}\n"


def test_gathered_directory_is_reported_as_any_session(url: str, tmp_path: Path) -> None:
    for name, calls in (("one", 2), ("two", 3)):
        cli("share", "--once", record(tmp_path / name, calls), "--to", url)
    cli("gather", SESSION, "--from", url, "--into", tmp_path / "into")
    page = cli("report", tmp_path / "into" / SESSION, "-o", "-")
    assert page.startswith("<!DOCTYPE html>")
    assert "bash" in page
    exported = cli("export", "prometheus", tmp_path / "into" / SESSION)
    assert 'm31a_tool_calls_total{outcome="success",tool="bash"} 3.0' in exported


def test_what_terminated_workers_did_not_share_is_shared_once_more(url: str, tmp_path: Path) -> None:
    with get_context("fork").Pool(2) as pool:
        pool.map(_work, [(tmp_path, url)] * 20)
    cli("share", "--once", tmp_path / SESSION, "--to", url)
    assert gather(SESSION, url).totals.tool_calls == 20


def _work(place: tuple[Path, str]) -> None:
    sessions, url = place
    with attach(SESSION, sessions, share=url) as recorder:
        recorder.record_tool_call("work", success=True, duration_ms=1)
