"""The journal: what is whole of it counts once, whatever was done to the rest."""

from __future__ import annotations

import zlib
from pathlib import Path

import orjson
import pytest

from damage import JOURNAL, UNITS, batch, line
from m31a_mp import Collector, SessionMetrics, Usage, attach, compact, verify
from m31a_mp.journal.append import Journal
from m31a_mp.journal.batch import MAX_LINE_BYTES, Batch
from m31a_mp.journal.reader import Lines, read
from m31a_mp.metrics import rejected
from m31a_mp.session.paths import Session
from metrics_of import durations
from strategies import Record
from workers import locked

CALLS = {name: duration for unit in UNITS for name, duration in unit.calls.items()}


def unit_at(offset: int) -> int:
    for i, unit in enumerate(UNITS):
        if offset < len(unit.data):
            return i
        offset -= len(unit.data)
    return len(UNITS)


class TestCut:
    @pytest.mark.slow
    @pytest.mark.parametrize("start", range(0, len(JOURNAL) + 1, 200))
    def test_journal_cut_at_any_byte_counts_every_whole_record_and_is_no_finding(
        self, sessions: Path, start: int
    ) -> None:
        for cut in range(start, min(start + 200, len(JOURNAL) + 1)):
            session = Session.named(f"cut{cut}", sessions)
            session.make()
            Path(session.journal).write_bytes(JOURNAL[:cut])
            # A record is whole when its JSON is, with or without its newline.
            whole = {name: ms for name, ms in CALLS.items() if line(name, ms).rstrip() in JOURNAL[:cut]}
            assert durations(attach(session.id, sessions).snapshot()) == whole, cut
            assert verify(sessions, session.id) == [], cut
            compaction = compact(sessions, session.id)
            assert durations(compaction.metrics) == whole, cut
            assert (compaction.rejected, compaction.records) == ([], len(whole)), cut
            assert verify(sessions, session.id) == [], cut

    def test_torn_tail_is_cut_before_the_next_append(self, session: Session) -> None:
        Path(session.journal).write_bytes(line("whole") + line("torn")[:-5])
        with locked(session):
            Journal(session).append([Batch("00000000000000aa", 1, line("next"))])
        assert Path(session.journal).read_bytes() == line("whole") + batch(1, line("next"))

    def test_whole_line_without_its_newline_gets_one_before_the_next_append(self, session: Session) -> None:
        Path(session.journal).write_bytes(line("whole").rstrip())
        with locked(session):
            Journal(session).append([Batch("00000000000000aa", 1, line("next"))])
        assert Path(session.journal).read_bytes() == line("whole") + batch(1, line("next"))

    def test_torn_tail_in_the_middle_of_a_utf_8_character_is_cut(self, session: Session) -> None:
        torn = line("é" * 50)
        middle = torn.index("é".encode()) + 1
        Path(session.journal).write_bytes(line("whole") + torn[:middle])
        with Collector("s", session.sessions_dir) as collector:
            collector.record_tool_call("next", True, 1)
            assert verify(session.sessions_dir, "s") == []
            collector.flush()
            assert {tool.name for tool in collector.snapshot().tools} == {"whole", "next"}
            assert verify(session.sessions_dir, "s") == []

    @pytest.mark.parametrize(
        "zeros", [1, 100, MAX_LINE_BYTES - 1, MAX_LINE_BYTES, MAX_LINE_BYTES + 1, 300_000]
    )
    def test_tail_of_zeros_costs_no_record(self, session: Session, zeros: int) -> None:
        with Collector("s", session.sessions_dir) as collector:
            Path(session.journal).write_bytes(JOURNAL + bytes(zeros))
            collector.record_tool_call("next", True, 512)
            assert durations(collector.snapshot()) == {**CALLS, "next": 512}
            assert verify(session.sessions_dir, "s") == []
            collector.stop()
            assert durations(attach("s", session.sessions_dir).snapshot()) == {**CALLS, "next": 512}
            assert verify(session.sessions_dir, "s") == []

    @pytest.mark.parametrize("zeros", [1, 100, MAX_LINE_BYTES + 1])
    def test_foreign_line_behind_a_tail_of_zeros_counts(self, session: Session, zeros: int) -> None:
        Path(session.journal).write_bytes(
            JOURNAL + bytes(zeros) + line("foreign-4", 512) + line("foreign-5", 1024)
        )
        counted = durations(compact(session.sessions_dir, "s").metrics)
        assert counted == {**CALLS, "foreign-4": 512, "foreign-5": 1024}

    @pytest.mark.parametrize(
        "garbage",
        [b"\xff" * 10, b"{" * 70_000, b"\0" * 70_000, b'{"event"', b"\x1b[31m", b"[", b"\0x", b"x\0"],
    )
    def test_append_after_a_tail_of_garbage_is_readable(self, session: Session, garbage: bytes) -> None:
        Path(session.journal).write_bytes(line("whole") + garbage)
        with locked(session):
            Journal(session).append([Batch("00000000000000aa", 1, line("next"))])
        with Path(session.journal).open("rb") as stream:
            items = list(read(stream))
        assert items[0] == Lines(0, line("whole"))
        assert isinstance(items[-1], Batch)
        assert items[-1].records == line("next")


class TestFlipped:
    """One byte of the journal is another. What is outside the batch or line that it stands in counts."""

    @pytest.mark.slow
    @pytest.mark.parametrize("start", range(0, len(JOURNAL), 200))
    @pytest.mark.parametrize("flip", ["all bits", "one bit", "newline", "zero"])
    def test_flipped_byte_costs_its_batch_or_line_at_most(
        self, sessions: Path, start: int, flip: str
    ) -> None:
        for at in range(start, min(start + 200, len(JOURNAL))):
            byte = JOURNAL[at]
            new = {"all bits": byte ^ 0xFF, "one bit": byte ^ 1, "newline": ord("\n"), "zero": 0}[flip]
            damaged = unit_at(at)
            # Without its newline a line is glued to what follows; a batch knows how long it is.
            is_end = unit_at(at + 1) != damaged
            hurt = {damaged, damaged + 1} if is_end and not UNITS[damaged].is_batch else {damaged}
            session = Session.named(f"{flip}{at}", sessions)
            session.make()
            Path(session.journal).write_bytes(JOURNAL[:at] + bytes([new]) + JOURNAL[at + 1 :])
            findings = verify(sessions, session.id)
            compaction = compact(sessions, session.id)
            counted = durations(compaction.metrics)
            lost = CALLS.keys() - counted.keys()
            for i, unit in enumerate(UNITS):
                for name, duration in unit.calls.items():
                    if i not in hurt:
                        assert counted.pop(name, None) == duration, (at, name)
                    elif unit.is_batch:
                        # Its checksum tells: a record of it is right, or it is not there.
                        assert counted.pop(name, duration) == duration, (at, name)
            # A line on its own has no checksum: a flip that leaves it valid cannot be told.
            assert not counted or not UNITS[damaged].is_batch, (at, counted)
            # A batch or a file that ends with zeros is torn, which is no finding.
            torn = is_end and (flip == "zero" or damaged == len(UNITS) - 1)
            renamed = bool(counted.keys() - CALLS.keys())
            assert findings or not lost or torn or renamed, (at, lost)
            assert len(findings) == len(compaction.rejected) == len(verify(sessions, session.id)), at

    def test_damaged_batch_is_set_aside_whole_with_file_offset_and_reason(self, session: Session) -> None:
        bad = batch(1, line("bad")).replace(b'"name":"bad"', b'"name":"BAD"')
        Path(session.journal).write_bytes(line("before") + bad + line("after"))
        compaction = compact(session.sessions_dir, "s")
        assert durations(compaction.metrics) == {"before": 1, "after": 1}
        (item,) = rejected.read(session.rejected)
        assert (item.offset, item.data) == (len(line("before")), bad)
        assert item.file.startswith("journal.")
        assert "checksum" in item.reason
        assert compaction.metrics.rejected == 1


NO_RECORDS = b'{"not":"a record"}\n' * 2


class TestLies:
    """A batch that is complete, and not what its header says."""

    def whole(self, header: dict[str, object]) -> bytes:
        head = orjson.dumps({"batch": "a" * 16, "first": 1, "count": 2, "bytes": len(NO_RECORDS), **header})
        head = head[:-1]
        return head + b',"crc32":"%08x"}\n' % zlib.crc32(NO_RECORDS, zlib.crc32(head)) + NO_RECORDS

    def check(self, session: Session, bad: bytes) -> None:
        Path(session.journal).write_bytes(line("before") + bad + batch(1, line("after"), writer="b" * 16))
        before = verify(session.sessions_dir, "s")
        compaction = compact(session.sessions_dir, "s")
        assert durations(compaction.metrics) == {"before": 1, "after": 1}
        assert compaction.metrics.dropped == {}
        assert before
        assert len(before) == len(compaction.rejected) == len(verify(session.sessions_dir, "s"))

    @pytest.mark.parametrize("count", [0, 1, 3, 2**63, -1, 2.0, True, None, "2"])
    def test_batch_whose_count_lies_is_set_aside(self, session: Session, count: object) -> None:
        self.check(session, self.whole({"count": count}))

    @pytest.mark.parametrize("crc", [b"00000000", b"xxxxxxxx", b"", b"-1", b"0" * 100])
    def test_batch_whose_checksum_lies_is_set_aside(self, session: Session, crc: bytes) -> None:
        good = self.whole({})
        start = good.index(b'"crc32":"') + len(b'"crc32":"')
        self.check(session, good[:start] + crc + good[start + 8 :])

    @pytest.mark.parametrize("size", [0, 1, 37, 39, 10**6, 2**40, 2**63, -1, None, "38", 38.0])
    def test_batch_whose_length_lies_costs_itself_at_most(self, session: Session, size: object) -> None:
        self.check(session, self.whole({"bytes": size}))

    @pytest.mark.parametrize("excess", [1, 50, len(line("foreign-1")), 2 * len(line("foreign-1")) + 1])
    def test_batch_whose_length_lies_does_not_swallow_the_lines_behind_it(
        self, session: Session, excess: int
    ) -> None:
        size = len(line("bad"))
        bad = batch(1, line("bad")).replace(b'"bytes":%d' % size, b'"bytes":%d' % (size + excess))
        Path(session.journal).write_bytes(bad + line("foreign-1") + line("foreign-2") + line("foreign-3"))
        counted = durations(compact(session.sessions_dir, "s").metrics)
        counted.pop("bad", None)
        assert counted == {"foreign-1": 1, "foreign-2": 1, "foreign-3": 1}

    @pytest.mark.parametrize(
        "header", [b"}", b"1}", b'"x"}', b'[[[[]]]],"first":1}', b"", b'"\xff"}', b"[" * 2000, b"null}"]
    )
    def test_header_that_cannot_be_read_costs_itself(self, session: Session, header: bytes) -> None:
        self.check(session, b'{"batch":' + header + b"\n")

    @pytest.mark.parametrize("dropped", [[], "x", {"no_space": -1}, {"no_space": 1.5}, {"no_space": "1"}, 7])
    def test_dropped_that_is_no_count_by_reason_is_set_aside(self, session: Session, dropped: object) -> None:
        self.check(session, self.whole({"dropped": dropped}))


class TestForeignLines:
    def count(self, session: Session, data: bytes, findings: int) -> SessionMetrics:
        Path(session.journal).write_bytes(line("before") + data + line("after"))
        assert len(verify(session.sessions_dir, "s")) == findings
        compaction = compact(session.sessions_dir, "s")
        assert len(compaction.rejected) == compaction.metrics.rejected == findings
        assert len(verify(session.sessions_dir, "s")) == findings
        assert {"before", "after"} <= {tool.name for tool in compaction.metrics.tools}
        return compaction.metrics

    @pytest.mark.parametrize(
        "bad",
        [
            b"\n", b"garbage\n", b"null\n", b"[]\n", b"{}\n", b"42\n", b'"tool_call"\n', b"\xff\xfe\n",
            b'{"event":"tool_call"}\n', b'{"event":"no_such_event"}\n', b'{"event":1}\n',
            b'{"event":["tool_call"]}\n',
            b'{"event":{"tool_call":1}}\n', b'{"event":null,"name":"x"}\n', b"NaN\n", b"Infinity\n",
            b'{"event":"tool_call","name":"\\ud800","success":true,"duration_ms":1}\n',
            b'{"event":"tool_call","name":"","success":true,"duration_ms":1}\n',
            b'{"event":"tool_call","name":"x","success":1,"duration_ms":1}\n',
            b'{"event":"tool_call","name":"x","success":true,"duration_ms":1.0}\n',
            b'{"event":"tool_call","name":"x","success":true,"duration_ms":-1}\n',
            b'{"event":"tool_call","name":"x","success":true,"duration_ms":9223372036854775808}\n',
            b'{"event":"tool_call","name":"x","success":true,"duration_ms":1e400}\n',
            b'{"event":"tool_call","time":-1,"name":"x","success":true,"duration_ms":1}\n',
            b'{"event":"tool_call","time":1.5,"name":"x","success":true,"duration_ms":1}\n',
            b'{"event":"phase_transition","phase":null}\n', b'{"event":"phase_transition","name":"plan"}\n',
            b'{"event":"llm_interaction","phase":"x","usage":null,"cost":1}\n',
            Record("llm_interaction", ("x", Usage(1, 1, 1), -1)).line(1),
            b'{"event":"tool_call","name":"%b","success":true,"duration_ms":1}\n' % (b"x" * 4097),
        ],
    )  # fmt: skip
    def test_line_that_is_no_record_is_set_aside_with_its_text(self, session: Session, bad: bytes) -> None:
        metrics = self.count(session, bad, 1)
        assert len(metrics.tools) == 2
        (item,) = rejected.read(session.rejected)
        assert item.data.rstrip(b"\n") == bad.rstrip(b"\n")
        assert item.offset == len(line("before"))
        assert item.reason

    def test_two_records_glued_on_one_line_cost_themselves(self, session: Session) -> None:
        metrics = self.count(session, line("one").rstrip() + line("two"), 1)
        assert len(metrics.tools) == 2

    @pytest.mark.parametrize("depth", [100, 900, 1000, 1020, 10_000])
    @pytest.mark.parametrize("key", [b'"event"', b'"name"', b'"time"', b'"x"', b'"dropped"'])
    @pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"a":', b"}")])
    def test_deeply_nested_json_costs_itself_at_most(
        self, session: Session, depth: int, key: bytes, brackets: tuple[bytes, bytes]
    ) -> None:
        opening, closing = brackets
        pairs = {
            b'"event"': b'"tool_call"', b'"name"': b'"nested"', b'"success"': b"true", b'"duration_ms"': b"1",
            key: opening * depth + b"1" + closing * depth,
        }  # fmt: skip
        bad = b"{" + b",".join(name + b":" + value for name, value in pairs.items()) + b"}\n"
        Path(session.journal).write_bytes(line("before") + bad + line("after"))
        verify(session.sessions_dir, "s")
        compaction = compact(session.sessions_dir, "s")
        counted = {tool.name for tool in compaction.metrics.tools}
        assert counted - {"nested"} == {"before", "after"}
        assert ("nested" in counted) == (not compaction.rejected)

    @pytest.mark.parametrize("size", [MAX_LINE_BYTES + 1, MAX_LINE_BYTES * 2, MAX_LINE_BYTES * 5 + 7])
    def test_line_of_more_than_64_kib_costs_itself(self, session: Session, size: int) -> None:
        start, end = b'{"event":"phase_transition","phase":"x","more":"', b'"}\n'
        self.count(session, start + b"x" * (size - len(start) - len(end)) + end, 1)

    def test_line_of_64_kib_counts(self, session: Session) -> None:
        start, end = b'{"event":"phase_transition","phase":"x","more":"', b'"}\n'
        metrics = self.count(session, start + b"x" * (64 * 1024 - len(start) - len(end)) + end, 0)
        assert [phase.phase for phase in metrics.phases] == ["x"]

    def test_keys_that_the_event_does_not_have_are_passed_over(self, session: Session) -> None:
        data = b'{"event":"heal_trigger","phase":"plan","pid":1,"more":{"x":[1]}}\n'
        assert self.count(session, data, 0).phases[0].heal_trigger_count == 1

    def test_spaces_and_carriage_returns_around_a_record_are_passed_over(self, session: Session) -> None:
        data = b' { "event" : "heal_trigger" , "phase" : "plan" } \r\n'
        assert self.count(session, data, 0).phases[0].heal_trigger_count == 1

    @pytest.mark.usefixtures("segments_at_once")
    def test_lines_without_a_time_count_as_recorded_when_folded_in_their_order(
        self, session: Session
    ) -> None:
        with Collector("s", session.sessions_dir) as collector:
            collector.record_tool_call("before", True, 1)
            Path(session.journal).write_bytes(
                b'{"event":"phase_duration","phase":"plan","duration_ms":1,"success":false}\n'
                b'{"event":"phase_duration","phase":"plan","duration_ms":2,"success":true}\n'
                b'{"event":"tool_call","name":"z","success":true,"duration_ms":1}\n'
                b'{"event":"tool_call","name":"a","success":true,"duration_ms":1}\n'
            )
            collector.flush()
            collector.record_tool_call("after", True, 1)
            metrics = collector.snapshot()
        assert [tool.name for tool in metrics.tools] == ["before", "z", "a", "after"]
        assert (metrics.phases[0].duration_ms, metrics.phases[0].success) == (2, True)

    def test_flood_of_garbage_is_counted_in_full_and_kept_in_part(self, session: Session) -> None:
        Path(session.journal).write_bytes(line("before") + b"garbage\n" * 30_000 + line("after"))
        compaction = compact(session.sessions_dir, "s")
        assert durations(compaction.metrics) == {"before": 1, "after": 1}
        assert compaction.metrics.rejected == 30_000
        assert 0 < len(compaction.rejected) < 30_000
