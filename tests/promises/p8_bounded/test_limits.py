"""Hostile and endless input: memory and descriptors stay bounded, and what is wrong with it is said."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pytest

import workers
from damage import header, tool_call
from m31a_mp import Collector, DamagedMetricsError, MetricsError, attach, compact, load, verify
from m31a_mp.journal.batch import MAX_BATCH_BYTES, Batch
from m31a_mp.metrics import rejected, totals
from m31a_mp.segments.format import DATA_OFFSET
from m31a_mp.segments.segment import Segment
from m31a_mp.session.paths import Session
from metrics_of import calls, count
from strategies import encoded
from workers import Forked

MIB = 1024 * 1024
# What a child may use at all: a test that finds something without bounds must not take the machine.
ADDRESS_SPACE = 2048 * MIB


# --- what runs in a child, to see what it takes ---


def _compact(session: Session) -> dict[str, Any]:
    found = compact(session.sessions_dir, session.id)
    tools = {tool.name: tool.call_count for tool in found.metrics.tools[:10]}
    return {
        "tools": tools,
        "distinct": len(found.metrics.tools),
        "rejected": found.metrics.rejected,
        "kept": len(found.rejected),
        "reason": found.rejected[-1].reason if found.rejected else "",
    }


def _verify(session: Session) -> dict[str, Any]:
    found = verify(session.sessions_dir, session.id)
    return {"kept": len(found), "reason": found[-1].reason if found else ""}


def _snapshot(session: Session) -> dict[str, Any]:
    metrics = attach(session.id, session.sessions_dir).snapshot()
    return {"tools": {tool.name: tool.call_count for tool in metrics.tools[:10]}}


def _load(session: Session) -> dict[str, Any]:
    return {"found": load(session.sessions_dir, session.id) is not None}


def _own(session: Session) -> dict[str, Any]:
    with Collector(session.id, session.sessions_dir) as collector:
        collector.record_tool_call("own", True, 1)
    return {}


ACTIONS: dict[str, Callable[[Session], dict[str, Any]]] = {
    "compact": _compact, "verify": _verify, "snapshot": _snapshot, "load": _load, "own": _own,
}  # fmt: skip


@dataclass
class Run:
    """What a child answered, the error of this library that it met, and its peak of memory in bytes."""

    answer: dict[str, Any]
    error: str
    peak: int


def run(action: str, session: Session, *, measured: bool = True) -> Run:
    """Do that in a child. Coverage makes it take three times as long, and line by line is done the same."""
    command = [sys.executable, __file__, action, session.sessions_dir]
    environment = os.environ | {"PYTHONPATH": os.path.dirname(workers.__file__)}
    if not measured:
        environment.pop("COVERAGE_PROCESS_CONFIG", None)
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert child.returncode == 0, child.stderr[-2000:]
    return Run(**json.loads(child.stdout))


def main(action: str, sessions_dir: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    answer, error = {}, ""
    try:
        answer = ACTIONS[action](Session.named("s", sessions_dir))
    except MetricsError as raised:
        error = type(raised).__name__
    # Not ru_maxrss, which an exec inherits: it would be that of the test.
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    (peak,) = (int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    print(json.dumps({"answer": answer, "error": error, "peak": peak}))  # noqa: T201


@pytest.fixture(scope="module")
def idle(all_sessions: Path) -> int:
    """The peak of a child that compacts next to nothing."""
    session = Session.named("s", all_sessions / "idle")
    session.make()
    Path(session.journal).write_bytes(tool_call("one"))
    return run("compact", session).peak


def assert_ten_more_come_through(session: Session) -> None:
    with Collector(session.id, session.sessions_dir) as collector:
        before = count(collector.snapshot())
        for i in range(10):
            collector.record_tool_call("after", True, i)
        collector.flush()
        metrics = load(session.sessions_dir, session.id)
        assert metrics is not None
        assert count(metrics) == before + 10


# --- the journal ---


@pytest.mark.slow
@pytest.mark.parametrize("action", ["verify", "compact"])
def test_line_of_100_mb_takes_no_memory_and_is_one_finding(session: Session, idle: int, action: str) -> None:
    with Path(session.journal).open("wb") as file:
        file.write(tool_call("before"))
        file.writelines(b"x" * 1_000_000 for _ in range(100))
        file.write(b"\n" + tool_call("after"))
    found = run(action, session)
    assert found.peak < idle + 16 * MIB
    assert found.answer["kept"] == 1
    assert "a line of more than 65536 bytes" in found.answer["reason"]
    if action == "compact":
        assert found.answer["tools"] == {"before": 1, "after": 1}
        assert_ten_more_come_through(session)


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_append_to_an_endless_last_line_takes_no_memory_and_both_count(
    session: Session, ending: bytes
) -> None:
    # A hole: 100 GB that take no room on the disk, and no reader gets to its end by reading.
    with Path(session.journal).open("wb") as file:
        file.truncate(100 * 1024 * MIB)
        file.seek(0, os.SEEK_END)
        file.write(b"x" * 70_000 + ending)

    def append() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        recorder = attach("s", session.sessions_dir)
        recorder.record_tool_call("mine", True, 1)
        recorder.flush()

    with Forked(append) as child:
        assert child.wait() == 0
    with Path(session.journal).open("rb") as stream:
        stream.seek(-2000, os.SEEK_END)
        tail = stream.read()
    Path(session.journal).unlink()
    assert b"x\n" + b'{"event":' in tail
    assert b'"name":"mine"' in tail


@pytest.mark.slow
@pytest.mark.parametrize(("action", "room"), [("verify", 16 * MIB), ("compact", 96 * MIB)])
def test_flood_of_garbage_lines_is_counted_in_full_and_kept_in_part(
    session: Session, idle: int, action: str, room: int
) -> None:
    Path(session.journal).write_bytes(tool_call("before") + b"garbage\n" * 150_000 + tool_call("after"))
    found = run(action, session)
    assert found.peak < idle + room  # an object for each line would take more than twice as much
    assert 0 < found.answer["kept"] <= 10_000
    assert "not JSON" in found.answer["reason"]
    if action == "compact":
        assert found.answer["tools"] == {"before": 1, "after": 1}
        assert found.answer["rejected"] == 150_000
        assert_ten_more_come_through(session)


@pytest.mark.slow
def test_flood_of_distinct_tools_keeps_the_first_hundred_thousand_and_says_so(
    session: Session, idle: int
) -> None:
    Path(session.journal).write_bytes(b"".join(tool_call(f"tool {i}") for i in range(130_000)))
    found = run("compact", session, measured=False)
    assert found.peak < idle + 256 * MIB  # a tool with its distribution takes 2 KiB in all stages together
    assert found.answer["distinct"] == 100_000
    assert found.answer["rejected"] == 30_000
    assert "would be one of more than 100000 distinct names" in found.answer["reason"]


def test_distinct_names_beyond_the_limit_are_findings_and_the_known_ones_go_on_for_good(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "MAX_ENTRIES", 10)
    collector = Collector("s", session.sessions_dir)
    for _ in range(2):
        for i in range(15):
            collector.record_tool_call(f"tool {i}", True, 1)
            collector.record_heal_trigger(f"phase {i}")
        collector.flush()
    metrics = collector.snapshot()
    collector.stop()
    assert [(tool.name, tool.call_count) for tool in metrics.tools] == [(f"tool {i}", 2) for i in range(10)]
    assert [phase.heal_trigger_count for phase in metrics.phases] == [2] * 10
    assert metrics.rejected == 2 * 2 * 5
    reasons = [finding.reason for finding in verify(session.sessions_dir, "s")]
    assert len(reasons) == 20
    assert all("one of more than 10 distinct names" in reason for reason in reasons)


def test_writers_beyond_the_limit_are_findings_and_those_that_are_gone_make_room_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "MAX_WRITERS", 10)

    def batches(first: int) -> bytes:
        return b"".join(encoded(Batch(f"{i:016x}", first, tool_call("t"))) for i in range(15))

    Path(session.journal).write_bytes(batches(1) + batches(2))
    found = compact(session.sessions_dir, "s")
    assert (found.records, found.metrics.rejected) == (20, 10)
    assert all("is one of more than 10" in item.reason for item in found.rejected)
    assert len(verify(session.sessions_dir, "s")) == 10
    Path(session.journal).write_bytes(batches(3))
    assert compact(session.sessions_dir, "s").records == 10
    assert json.loads(Path(session.metrics).read_bytes())["m31a_mp"]["writers"] == {}


@pytest.mark.slow
def test_endless_ids_of_writers_take_no_memory(session: Session, idle: int) -> None:
    with Path(session.journal).open("wb") as file:
        file.writelines(encoded(Batch(f"{i:060000x}", 1, tool_call("t"))) for i in range(3000))
    assert run("compact", session).peak < idle + 96 * MIB  # of 180 MB


HUGE = [10**12, 2**32, 2**62, 2**63 - 1, 2**64 - 1, 10**30, -(10**12)]


@pytest.mark.slow
def test_batch_headers_that_announce_endless_batches_take_no_memory_and_cost_themselves(
    session: Session, idle: int
) -> None:
    headers = [header(**{key: number}) for key in ("bytes", "count", "first") for number in HUGE]
    lies = [head + tool_call("batch") for head in headers]
    Path(session.journal).write_bytes(
        b"".join(lie + tool_call("between") for lie in lies) + tool_call("last")
    )
    found = run("compact", session)
    assert found.peak < idle + 16 * MIB
    assert found.answer["tools"]["between"] == len(lies)
    assert found.answer["tools"]["last"] == 1
    assert found.answer["rejected"] >= len(lies)


@pytest.mark.slow
@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"a":', b"}")])
def test_record_of_a_batch_that_is_nested_without_end_costs_itself(
    session: Session, idle: int, brackets: tuple[bytes, bytes]
) -> None:
    # In a batch a line may be as long as the batch.
    opening, closing = brackets
    depth = 3 * MIB // len(opening + closing)
    record = b'{"event":"heal_trigger","phase":"x","more":%b1%b}\n' % (opening * depth, closing * depth)
    batch = Batch("00000000000000aa", 1, tool_call("in the batch") + record + tool_call("in the batch"))
    Path(session.journal).write_bytes(encoded(batch) + tool_call("after"))
    found = run("compact", session)
    assert found.peak < idle + 64 * MIB
    assert found.answer["tools"] == {"in the batch": 2, "after": 1}
    assert found.answer["rejected"] == 1


# --- numbers at their end ---


def test_writer_whose_record_numbers_pass_64_bits_stops_nobody(session: Session) -> None:
    # Alive: what is known of the writers that are gone is forgotten.
    planted = Segment.create(session.segments, "0" * 16, 2**64 - 1, 4096)
    for _ in range(2):
        planted.store(tool_call("planted"))
    try:
        with Collector("s", session.sessions_dir) as collector:
            collector.record_tool_call("mine", True, 1)
            collector.flush()
            assert "mine" in {tool.name for tool in collector.snapshot().tools}
        metrics = load(session.sessions_dir, "s")
        assert metrics is not None
        assert "mine" in {tool.name for tool in metrics.tools}
    finally:
        planted.close()


@pytest.mark.parametrize("number", [10**12 - 2, 10**12 - 1, 10**12])
def test_planted_journal_with_the_last_of_all_numbers_costs_no_record(session: Session, number: int) -> None:
    Path(session.sealed_as(number)).write_bytes(tool_call("planted"))
    for wanted in (1, 2, 3):
        Path(session.journal).write_bytes(tool_call("mine"))
        tools = calls(compact(session.sessions_dir, "s").metrics)
        assert tools.get("mine") == wanted


@pytest.mark.parametrize("number", [10**12 - 2, 10**12 - 1, 10**12, 2**63, 10**30, -1])
def test_metrics_json_that_names_the_last_of_all_journals_is_damaged_or_costs_no_record(
    session: Session, number: int
) -> None:
    compact(session.sessions_dir, "s")
    document = json.loads(Path(session.metrics).read_bytes())
    document["m31a_mp"]["journal"] = number
    Path(session.metrics).write_bytes(json.dumps(document).encode())
    with suppress(DamagedMetricsError):  # a person has to look, and the journal is left alone
        for wanted in (1, 2, 3):
            Path(session.journal).write_bytes(tool_call("mine"))
            tools = calls(compact(session.sessions_dir, "s").metrics)
            assert tools.get("mine") == wanted


# --- files that are not what they should be ---


def make_sparse(path: Path) -> None:
    """More than a child may have memory; nearly nothing on the disk."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(ADDRESS_SPACE + MIB)


@pytest.mark.slow
@pytest.mark.parametrize("action", ["load", "verify", "snapshot", "compact", "own"])
def test_metrics_json_larger_than_memory_is_damaged_and_is_not_read(session: Session, action: str) -> None:
    make_sparse(Path(session.metrics))
    found = run(action, session)
    if action == "verify":
        assert found.answer["kept"] == 1
    else:
        assert found.error == "DamagedMetricsError"


@pytest.mark.slow
@pytest.mark.parametrize("action", ["verify", "compact", "own"])
def test_rejected_file_larger_than_memory_stops_nobody(session: Session, idle: int, action: str) -> None:
    make_sparse(Path(session.rejected))
    Path(session.journal).write_bytes(tool_call("before") + b"garbage\n" + tool_call("after"))
    found = run(action, session)
    assert found.error == ""
    assert found.peak < idle + 256 * MIB
    if action == "compact":
        assert found.answer["tools"] == {"before": 1, "after": 1}


@pytest.mark.slow
def test_one_more_rejected_line_costs_no_multiple_of_those_that_were_rejected_before(
    session: Session, idle: int
) -> None:
    line = rejected.Rejected("journal.000000000001.ndjson", 0, "not JSON", b"garbage").encode()
    with Path(session.rejected).open("wb") as file:
        file.writelines(line.replace(b'"offset":0', b'"offset":%d' % i) for i in range(16 * MIB // len(line)))
    size = Path(session.rejected).stat().st_size
    Path(session.journal).write_bytes(b"garbage\n")
    found = run("compact", session)
    assert found.peak < idle + 8 * size
    assert Path(session.rejected).stat().st_size > size


def test_rejected_file_stops_growing_and_everything_rejected_is_counted_on(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejected, "_MAX_FILE_BYTES", 100_000)
    sizes = []
    with Collector("s", session.sessions_dir) as collector:
        for flood in range(1, 8):
            Path(session.journal).write_bytes(b"garbage %d\n" % flood * 300)
            collector.flush()
            sizes.append(Path(session.rejected).stat().st_size)
            assert collector.snapshot().rejected == flood * 300
    assert sizes[0] < sizes[1] <= max(sizes) <= 100_000
    assert sizes[-1] == sizes[-2]
    kept = list(rejected.read(session.rejected))
    assert 300 < len(kept) < 7 * 300
    assert_ten_more_come_through(session)


@pytest.mark.slow
def test_owner_lock_larger_than_memory_is_still_the_lock_of_its_owner(session: Session) -> None:
    with Collector("s", session.sessions_dir):
        make_sparse(Path(session.owner_lock))
        assert run("own", session).error == "SessionOwnedError"


@pytest.mark.slow
@pytest.mark.parametrize("action", ["verify", "compact"])
@pytest.mark.parametrize("drained", [2**40, 2**63, 2**64 - 1])
def test_segment_that_is_endless_and_says_so_gives_what_is_its_own(
    session: Session, idle: int, action: str, drained: int
) -> None:
    planted = Segment.create(session.segments, "0" * 16, 1, 4096)
    planted.store(tool_call("t"))
    planted.close()
    os.truncate(planted.name, 100 * 1024 * MIB)
    with Path(planted.name).open("r+b") as file:
        file.seek(128)
        file.write(struct.pack("=Q", drained))
    found = run(action, session)
    assert found.peak < idle + 16 * MIB
    assert found.answer.get("tools", {"t": 1}) == {"t": 1}
    assert found.answer["kept"] == 0


@pytest.mark.parametrize("size", [MAX_BATCH_BYTES + 1, 2**40, 2**64 - 1])
def test_segment_whose_header_claims_a_size_beyond_the_limit_is_a_finding(
    session: Session, size: int
) -> None:
    planted = Segment.create(session.segments, "0" * 16, 1, 4096)
    planted.close()
    content = bytearray(Path(planted.name).read_bytes())
    struct.pack_into("=Q", content, 40, size)
    struct.pack_into("=I", content, 12, zlib.crc32(content[16:112]))
    Path(planted.name).write_bytes(content)
    assert [finding.offset for finding in verify(session.sessions_dir, "s")] == [0]
    assert compact(session.sessions_dir, "s").metrics.rejected == 1
    assert_ten_more_come_through(session)


def plant_garbage(segments: Path, count: int) -> None:
    """Files, directories, pipes, links and holes; half of them under names that a segment may have."""
    for i in range(count):
        name = os.fsencode(segments) + b"/" + [b"%016x.%020d.seg", b"\xff%d%d.seg", b"%d%d"][i % 3] % (i, 1)
        match i % 20:
            case 0:
                os.mkdir(name)
            case 1:
                os.mkfifo(name)
            case 2:
                os.symlink("/dev/zero", name)
            case 3:
                os.symlink(name, name)
            case 4:
                os.close(os.open(name, os.O_CREAT))
                os.truncate(name, 100 * 1024 * MIB)
            case _:
                with open(name, "wb") as file:
                    file.write(b"garbage")


@pytest.mark.slow
@pytest.mark.parametrize("action", ["verify", "compact"])
def test_five_thousand_files_of_garbage_among_the_segments_are_findings_and_take_little(
    session: Session, idle: int, action: str
) -> None:
    with Collector("s", session.sessions_dir) as collector:
        collector.record_tool_call("before", True, 1)
    plant_garbage(Path(session.segments), 5000)
    planted = sum(name.endswith(".seg") for name in os.listdir(session.segments))
    assert planted > 3000
    found = run(action, session)
    assert found.peak < idle + 48 * MIB
    assert found.answer["kept"] == planted
    if action == "compact":
        assert found.answer["tools"] == {"before": 1}
        assert_ten_more_come_through(session)
        metrics = load(session.sessions_dir, "s")
        assert metrics is not None
        assert metrics.rejected == planted  # once, and not at every flush


def test_each_of_many_damaged_segments_is_not_compared_with_every_other(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(300):
        (Path(session.segments) / f"{i:016x}.{1:020d}.seg").write_bytes(b"garbage")
    comparisons = 0
    equal = PurePath.__eq__

    def counted(one: PurePath, other: object) -> bool:
        nonlocal comparisons
        comparisons += 1
        return equal(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(PurePath, "__eq__", counted)
        assert len(compact(session.sessions_dir, "s").rejected) == 300
    assert comparisons < 20 * 300


# --- what piles up ---


@pytest.mark.slow
@pytest.mark.parametrize("action", ["compact", "snapshot"])
def test_many_full_segments_take_no_memory_of_their_size(session: Session, idle: int, action: str) -> None:
    size, record = MIB, tool_call("x" * 1000)
    lines = record * ((size - DATA_OFFSET) // len(record))
    for i in range(64):
        full = Segment.create(session.segments, f"{i:016x}", 1, size)
        full.store(lines)
        full.close()
    found = run(action, session)
    assert list(found.answer["tools"].values()) == [64 * lines.count(b"\n")]
    assert found.peak < idle + 32 * MIB


@pytest.mark.slow
def test_publications_that_failed_for_long_leave_a_session_that_few_descriptors_can_look_at(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector("s", session.sessions_dir)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)  # there is room for records, and none for metrics.json
        for _ in range(300):
            collector.record_tool_call("t", True, 1)
            with pytest.raises(OSError, match="No space"):
                collector.flush()

    def look() -> None:
        most = len(os.listdir("/proc/self/fd")) + 100
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        assert [tool.call_count for tool in collector.snapshot().tools] == [300]
        assert verify(session.sessions_dir, "s") == []

    with Forked(look) as child:
        assert child.wait() == 0
    collector.stop()
    assert session.sealed() == []
    metrics = load(session.sessions_dir, "s")
    assert metrics is not None
    assert [tool.call_count for tool in metrics.tools] == [300]


@pytest.mark.slow
def test_drain_of_many_segments_needs_few_descriptors(session: Session) -> None:
    for i in range(300):
        full = Segment.create(session.segments, f"{i:016x}", 1, 1024)
        full.store(tool_call("t"))
        full.close()

    def look_and_compact() -> None:
        most = len(os.listdir("/proc/self/fd")) + 100
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        assert attach("s", session.sessions_dir).snapshot().tools[0].call_count == 300
        assert compact(session.sessions_dir, "s").records == 300

    with Forked(look_and_compact) as child:
        assert child.wait() == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
