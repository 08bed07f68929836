"""Who lives and who is dead: a live writer's segment is never deleted, a dead one's is, nothing is lost."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson
import pytest

from m31a_mp import Collector, attach, load, verify
from m31a_mp.segments import reader
from m31a_mp.system import files, process
from m31a_mp.system.process import ProcessIdentity
from metrics_of import SESSION, count_of, segments
from workers import Forked, changed

pytestmark = pytest.mark.usefixtures("segments_at_once")

IDENTITY = struct.Struct("=QQQ36s")  # at byte 48 of a segment


def segment_of_a_dead_writer(sessions_dir: Path, records: int = 3) -> Path:
    """A segment that nobody maps any more, with so many records."""
    before = set(segments(sessions_dir))
    recorder = attach(SESSION, sessions_dir)

    def record() -> None:
        for i in range(records):
            recorder.record_tool_call("tool", True, i)

    with Forked(record) as writer:
        assert writer.wait() == 0
    (made,) = set(segments(sessions_dir)) - before
    return made


def identity_of(path: Path) -> ProcessIdentity:
    with reader.SegmentFile.open(str(path)) as file:
        return file.identity


def forge(path: Path, who: ProcessIdentity) -> None:
    """Make the segment that of another process."""
    content = bytearray(path.read_bytes())
    IDENTITY.pack_into(content, 48, who.pid, who.started, who.namespace, who.boot_id.encode())
    struct.pack_into("=I", content, 12, zlib.crc32(content[16:112]))
    path.write_bytes(content)
    found = identity_of(path)
    assert all(getattr(found, name) == getattr(who, name) for name in who.__slots__)


# --- pids that lie ---


def pid_of_another_process(who: ProcessIdentity) -> ProcessIdentity:
    # This process lives, and did not start when the writer did.
    return changed(who, pid=os.getpid(), started=process.current().started - 1)


def pid_of_nobody(who: ProcessIdentity) -> ProcessIdentity:
    with Forked(lambda: None) as gone:
        gone.wait()
    return changed(who, pid=gone.pid)


def another_boot(_: ProcessIdentity) -> ProcessIdentity:
    # Even pid and start are those of a process that lives.
    return changed(process.current(), boot_id="01234567-89ab-cdef-0123-456789abcdef")


def another_namespace(who: ProcessIdentity) -> ProcessIdentity:
    return changed(process.current(), namespace=who.namespace + 1)


@pytest.mark.parametrize("made", [pid_of_another_process, pid_of_nobody, another_boot, another_namespace])
def test_segment_that_nobody_maps_of_a_process_not_seen_alive_is_counted_and_deleted(
    made: Callable[[ProcessIdentity], ProcessIdentity], collector: Collector, tmp_path: Path
) -> None:
    path = segment_of_a_dead_writer(tmp_path)
    forge(path, made(identity_of(path)))
    collector.flush()

    assert count_of(tmp_path) == 3
    assert segments(tmp_path) == []
    assert verify(tmp_path, SESSION) == []


def test_segment_that_nobody_maps_of_a_process_that_is_seen_alive_is_counted_and_deleted(
    collector: Collector, tmp_path: Path
) -> None:
    forge(segment_of_a_dead_writer(tmp_path), process.current())
    collector.flush()
    assert count_of(tmp_path) == 3
    assert segments(tmp_path) == []


@pytest.mark.parametrize("path", ["/proc/{pid}/maps", "/proc/{pid}/stat"])
def test_segment_of_a_process_that_shows_nothing_is_counted_and_kept(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    made = segment_of_a_dead_writer(tmp_path)
    forge(made, process.current())
    read = files.read

    def refuse(asked: str) -> bytes:
        if asked in {path.format(pid=os.getpid()), f"/proc/{os.getpid()}/maps"}:
            raise PermissionError(asked)
        return read(asked)

    monkeypatch.setattr(files, "read", refuse)
    for _ in range(2):
        collector.flush()
        assert count_of(tmp_path) == 3
        assert segments(tmp_path) == [made]


def test_programs_that_replace_one_another_in_a_process_leave_no_segments(
    collector: Collector, tmp_path: Path
) -> None:
    program = """
import os, sys
from m31a_mp import Recorder
from m31a_mp.segments import staging
staging.STRAIGHT_RECORDS = 0
Recorder.from_env().record_tool_call("tool", True, 1)
left = int(sys.argv[1])
if left:
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[2], str(left - 1), sys.argv[2]])
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, "5", program],
        env=os.environ | collector.env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as last:
        assert last.stdout
        assert last.stdout.readline()
        collector.flush()
        assert count_of(tmp_path) == 6
        assert len(segments(tmp_path)) == 1
        last.communicate()


@pytest.mark.parametrize("content", [b"", b"garbage", b"m31a_seg", "a copy", None])
@pytest.mark.parametrize("number", ["00000000000000000002", "00000000000000000011", "99999999999999999999"])
def test_planted_file_of_a_later_number_costs_a_living_writer_nothing(
    collector: Collector, tmp_path: Path, content: bytes | str | None, number: str
) -> None:
    recorder = attach(SESSION, tmp_path)
    for _ in range(10):
        recorder.record_tool_call("tool", True, 1)
    (mine,) = segments(tmp_path)
    planted = mine.with_name(f"{mine.name[:16]}.{number}.seg")
    if content is None:
        planted.symlink_to(mine)
    else:
        planted.write_bytes(content if isinstance(content, bytes) else mine.read_bytes())
    with suppress(OSError):
        collector.flush()
    assert mine.exists()
    for _ in range(20):
        recorder.record_tool_call("tool", True, 1)
    recorder.stop()
    collector.flush()
    metrics = load(tmp_path, SESSION)
    assert metrics
    assert sum(tool.call_count for tool in metrics.tools) == 30
    assert segments(tmp_path) == []


def test_segment_that_is_mapped_is_kept_whatever_its_header_says_of_its_writer(
    collector: Collector, tmp_path: Path
) -> None:
    collector.record_tool_call("tool", True, 1)
    (path,) = segments(tmp_path)
    for made in (pid_of_another_process, pid_of_nobody, another_boot, another_namespace):
        who = made(process.current())
        with path.open("r+b") as file:  # in place: it stays mapped
            file.seek(48)
            file.write(IDENTITY.pack(who.pid, who.started, who.namespace, who.boot_id.encode()))
            file.seek(16)
            crc = zlib.crc32(file.read(96))
            file.seek(12)
            file.write(struct.pack("=I", crc))
        collector.flush()
        collector.record_tool_call("tool", True, 1)
        assert segments(tmp_path) == [path]
    collector.flush()

    assert count_of(tmp_path) == 5


def test_zombie_is_dead(collector: Collector, tmp_path: Path) -> None:
    recorder = attach(SESSION, tmp_path)
    with Forked(recorder.record_tool_call, "tool", True, 1) as writer:
        os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)  # its parent has not asked for its status
        assert len(segments(tmp_path)) == 1
        collector.flush()

        assert count_of(tmp_path) == 1
        assert segments(tmp_path) == []


# --- pid namespaces ---


UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def why_no_namespaces() -> str:
    try:
        subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", "true"], check=True, capture_output=True
        )
    except FileNotFoundError:
        return "there is no unshare(1)"
    except subprocess.CalledProcessError as error:
        return f"no pid namespace may be made here: {error.stderr.decode().strip()}"
    return ""


NO_NAMESPACES = why_no_namespaces()
in_a_namespace = pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)

# Records for each line that it is sent, and answers its own pid.
RECORDER = """
import os, sys
from m31a_mp import Recorder
from m31a_mp.segments import staging
staging.STRAIGHT_RECORDS = 0
recorder = Recorder.from_env()
for line in sys.stdin:
    recorder.record_tool_call("tool", True, 1)
    print(os.getpid(), flush=True)
"""

# Owns the session for a moment.
OWNER = """
import os, sys
from m31a_mp import Collector
Collector(*sys.argv[1:]).stop()
print(os.getpid())
"""


class Elsewhere:
    """A program in a pid namespace of its own."""

    def __init__(self, program: str, *arguments: str, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [*UNSHARE, sys.executable, "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **env},
        )

    def record(self) -> int:
        """Returns the pid that the program thinks it has."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def kill(self) -> None:
        """End it by SIGKILL, and wait until it is gone."""
        self._process.kill()
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdout.read()  # to its end: the program is gone, not only unshare
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


@contextmanager
def elsewhere(program: str, *arguments: str, env: dict[str, str]) -> Iterator[Elsewhere]:
    running = Elsewhere(program, *arguments, env=env)
    try:
        yield running
    finally:
        running.kill()


@in_a_namespace
def test_live_writer_in_another_pid_namespace_keeps_its_segment_and_loses_it_when_it_dies(
    collector: Collector, tmp_path: Path
) -> None:
    with elsewhere(RECORDER, env=collector.env()) as writer:
        assert writer.record() == 1  # the pid of a process that is surely alive here
        (path,) = segments(tmp_path)
        for n in range(1, 4):
            collector.flush()
            assert count_of(tmp_path) == n
            assert segments(tmp_path) == [path]
            writer.record()
    collector.flush()

    assert count_of(tmp_path) == 4
    assert segments(tmp_path) == []
    assert verify(tmp_path, SESSION) == []


@in_a_namespace
def test_two_writers_of_the_same_pid_in_two_namespaces_do_not_get_into_each_others_way(
    collector: Collector, tmp_path: Path
) -> None:
    with elsewhere(RECORDER, env=collector.env()) as survivor:
        with elsewhere(RECORDER, env=collector.env()) as victim:
            assert survivor.record() == victim.record() == 1
        collector.flush()
        assert len(segments(tmp_path)) == 1
        assert survivor.record() == 1
        collector.flush()

    assert count_of(tmp_path) == 3


@in_a_namespace
def test_owner_in_another_pid_namespace_keeps_live_segments_and_deletes_dead_ones(tmp_path: Path) -> None:
    recorder = attach(SESSION, tmp_path)
    recorder.record_tool_call("tool", True, 1)
    (of_the_living,) = segments(tmp_path)
    dead = segment_of_a_dead_writer(tmp_path)
    forge(dead, changed(identity_of(dead), pid=1))  # which is the owner's own there
    with elsewhere(OWNER, SESSION, str(tmp_path), env={}) as owner:
        assert owner._process.stdout
        assert int(owner._process.stdout.readline()) == 1
        owner._process.wait()

    assert count_of(tmp_path) == 4
    assert segments(tmp_path) == [of_the_living]
    recorder.record_tool_call("tool", True, 1)
    with Collector(SESSION, tmp_path) as collector:
        assert collector.snapshot().tools[0].call_count == 5
    recorder.stop()


# --- descriptors closed by the program ---

CLOSER = """
import os, sys
from m31a_mp import Recorder
from m31a_mp.segments import staging
staging.STRAIGHT_RECORDS = 0
recorder = Recorder.from_env()
recorder.record_tool_call("tool", True, 1)
os.closerange(3, 1000)
files = [open(os.devnull, "rb") for _ in range(20)]  # they get the numbers that became free
for line in sys.stdin:
    for _ in range(int(line)):
        recorder.record_tool_call("tool", True, 1)
    broken = 0
    for file in files:
        try:
            os.fstat(file.fileno())
        except OSError:
            broken += 1
    print(broken, flush=True)
os._exit(0)
"""


@contextmanager
def closer(collector: Collector) -> Iterator[subprocess.Popen[bytes]]:
    program = subprocess.Popen(
        [sys.executable, "-c", CLOSER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **collector.env()},
    )
    try:
        with program:
            yield program
    finally:
        program.kill()
        program.wait()


def ask(program: subprocess.Popen[bytes], records: int) -> int:
    """Have it record so often; returns how many of its files are not open any more."""
    assert program.stdin
    assert program.stdout
    program.stdin.write(b"%d\n" % records)
    program.stdin.flush()
    return int(program.stdout.readline())


def test_writer_whose_program_closed_all_descriptors_keeps_its_segment_and_loses_nothing(
    collector: Collector, tmp_path: Path
) -> None:
    with closer(collector) as program:
        ask(program, 1)
        (path,) = segments(tmp_path)
        for n in range(3):
            collector.flush()
            assert count_of(tmp_path) == 2 + n
            assert segments(tmp_path) == [path]
            ask(program, 1)
        ask(program, 20_000)  # through several segments
        collector.flush()
        assert count_of(tmp_path) == 20_005
        assert len(segments(tmp_path)) == 1
        program.send_signal(signal.SIGKILL)
    collector.flush()

    assert count_of(tmp_path) == 20_005
    assert segments(tmp_path) == []
    assert verify(tmp_path, SESSION) == []


def test_recording_after_the_program_closed_all_descriptors_closes_no_file_that_it_opened_since(
    collector: Collector,
) -> None:
    with closer(collector) as program:
        assert ask(program, 20_000) == 0  # through several segments


def test_owner_whose_program_closed_all_descriptors_owns_the_session_no_more_and_loses_nothing(
    tmp_path: Path,
) -> None:
    def own() -> None:
        collector = Collector(SESSION, tmp_path)
        collector.record_tool_call("tool", True, 1)
        os.closerange(3, 1000)
        collector.record_tool_call("tool", True, 1)
        collector.flush()
        collector.record_tool_call("tool", True, 1)

    with Forked(own) as owner:
        assert owner.wait() == 0
    with Collector(SESSION, tmp_path) as successor:
        successor.flush()

    assert count_of(tmp_path) == 3
    assert orjson.loads((tmp_path / SESSION / "metrics.json").read_bytes())["m31a_mp"]["writers"] == {}
