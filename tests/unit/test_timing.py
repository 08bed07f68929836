"""Measured blocks, functions and commands: what is recorded, whichever way they end."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from contextvars import Context, copy_context
from functools import partial
from pathlib import Path
from typing import Any, assert_type

import orjson
import pytest

from m31a_mp import Collector, PhaseMetric, Recorder, ToolMetric, WorkflowPhase, attach, timing
from m31a_mp.segments.format import DATA_OFFSET
from m31a_mp.timing import Measured
from metrics_of import measured
from strategies import bare, untimed
from workers import Forked

REAL_CLOCK = timing.monotonic_ns  # type: ignore[attr-defined]  # which the tests replace


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 10**15

    def advance(self, milliseconds: float, end: BaseException | None = None) -> None:
        self.now += round(milliseconds * 1_000_000)
        if end:
            raise end


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "monotonic_ns", lambda: clock.now)
    return clock


ENDS: list[BaseException] = [
    ValueError("of the tool"),
    KeyboardInterrupt(),
    SystemExit(0),
    GeneratorExit(),
    asyncio.CancelledError(),
]


class TestBlock:
    @pytest.mark.parametrize(("took", "recorded"), [(0, 0), (0.999999, 0), (1, 1), (1999.999999, 1999)])
    def test_duration_is_recorded_in_whole_milliseconds(
        self, collector: Collector, clock: Clock, took: float, recorded: int
    ) -> None:
        with collector.tool_call("bash"):
            clock.advance(took)
        assert measured(collector) == {"bash": (1, 0, recorded)}

    def test_clock_is_one_that_nobody_sets(self) -> None:
        assert REAL_CLOCK is time.monotonic_ns

    @pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
    def test_whatever_exception_leaves_is_a_failure_and_goes_on_its_way(
        self, collector: Collector, clock: Clock, end: BaseException
    ) -> None:
        with pytest.raises(type(end)) as caught, collector.tool_call("bash"):
            clock.advance(7, end)
        assert caught.value is end
        assert measured(collector) == {"bash": (0, 1, 7)}

    def test_exception_that_is_caught_inside_is_no_failure(self, collector: Collector) -> None:
        with collector.tool_call("bash"), suppress(ValueError):
            raise ValueError
        assert measured(collector) == {"bash": (1, 0, 0)}

    def test_return_break_and_continue_out_of_the_block_are_no_failures(self, collector: Collector) -> None:
        def search() -> int:
            for i in range(3):
                with collector.tool_call("bash"):
                    if i == 0:
                        continue
                    return i
            return -1

        for _ in range(2):
            with collector.tool_call("bash"):
                break
        assert search() == 1
        assert measured(collector) == {"bash": (3, 0, 0)}

    def test_block_can_say_that_it_failed(self, collector: Collector, clock: Clock) -> None:
        with collector.tool_call("bash") as call:
            assert call.success
            call.success = False
            clock.advance(3)
        assert measured(collector) == {"bash": (0, 1, 3)}

    def test_block_that_says_it_succeeded_and_raises_has_failed(self, collector: Collector) -> None:
        def bash() -> None:
            with collector.tool_call("bash") as call:
                call.success = True
                raise ValueError("late")

        with pytest.raises(ValueError, match="late"):
            bash()
        assert measured(collector) == {"bash": (0, 1, 0)}

    @pytest.mark.parametrize("value", [0, None, "no"])
    def test_outcome_that_is_no_bool_raises_where_it_is_set(self, collector: Collector, value: Any) -> None:
        call = collector.tool_call("bash").__enter__()
        with pytest.raises(TypeError, match="success must be a bool"):
            call.success = value

    def test_generator_that_is_closed_in_the_block_has_failed(self, collector: Collector) -> None:
        def lines() -> Iterator[int]:
            with collector.tool_call("tail"):
                yield 1

        generator = lines()
        next(generator)
        assert not measured(collector)
        del generator
        assert measured(collector) == {"tail": (0, 1, 0)}

    @pytest.mark.parametrize("name", ["", "x" * 4097, None, b"bash", 1])
    def test_wrong_name_raises_before_anything_is_done(self, collector: Collector, name: Any) -> None:
        makers: list[Callable[..., object]] = [
            collector.tool_call,
            collector.tool,
            collector.phase,
            partial(collector.run, ["touch", "no"], cwd=collector.env()["M31A_MP_SESSION"], tool=name),
        ]
        for make in makers:
            with pytest.raises((TypeError, ValueError), match=r"name|phase"):
                make(name) if make is not makers[-1] else make()
        assert not Path(collector.env()["M31A_MP_SESSION"], "no").exists()
        metrics = collector.snapshot()
        assert (metrics.tools, metrics.phases) == ([], [])

    def test_block_of_another_process_is_recorded_by_its_recorder(
        self, collector: Collector, tmp_path: Path, clock: Clock
    ) -> None:
        with attach("s", tmp_path).tool_call("bash"):
            clock.advance(1)
        assert measured(collector) == {"bash": (1, 0, 1)}

    def test_block_whose_session_is_stopped_meanwhile_is_counted_by_the_next_flush(
        self, collector: Collector, clock: Clock
    ) -> None:
        with collector.tool_call("bash"):
            collector.stop()
            clock.advance(5)
        collector.flush()
        assert measured(collector) == {"bash": (1, 0, 5)}

    def test_fork_in_the_block_counts_where_it_was_entered(self, collector: Collector) -> None:
        stopwatch = collector.tool_call("bash")
        stopwatch.__enter__()
        with Forked(stopwatch.__exit__, None, None, None) as child:
            assert child.wait() == 0
        stopwatch.__exit__(ValueError, ValueError(), None)
        assert measured(collector) == {"bash": (0, 1, 0)}
        assert collector.snapshot().running == []


class TestMany:
    def test_nested_blocks_of_one_tool_count_each_by_itself(self, collector: Collector, clock: Clock) -> None:
        with collector.tool_call("bash"):
            clock.advance(1)
            with suppress(ValueError), collector.tool_call("bash"):
                clock.advance(10)
                raise ValueError
            clock.advance(100)
        assert measured(collector) == {"bash": (1, 1, 121)}

    def test_one_object_can_be_entered_while_it_is_entered_and_again(
        self, collector: Collector, clock: Clock
    ) -> None:
        call = collector.tool_call("bash")
        with call as outer:
            clock.advance(1)
            with call as inner:
                inner.success = False
                clock.advance(10)
            assert outer.success
            clock.advance(100)
        with call:
            clock.advance(1000)
        assert measured(collector) == {"bash": (2, 1, 1121)}

    def test_one_object_in_tasks_that_overlap_adds_up_to_the_same(
        self, collector: Collector, clock: Clock
    ) -> None:
        call = collector.tool_call("fetch")
        gates = [asyncio.Event() for _ in range(3)]

        async def fetch(i: int) -> None:
            async with call:
                await gates[i].wait()
                if i == 1:
                    raise ValueError

        async def main() -> None:
            tasks = []
            for i in range(3):
                tasks.append(asyncio.create_task(fetch(i)))
                await asyncio.sleep(0)
                clock.advance(1)
            for i in range(3):  # the first one in is the first one out
                gates[i].set()
                await asyncio.wait([tasks[i]])
                clock.advance(10)
            with pytest.raises(ValueError):  # noqa: PT011  # it says nothing
                await tasks[1]

        asyncio.run(main())
        assert measured(collector) == {"fetch": (2, 1, 3 + 12 + 21)}

    def test_threads_that_share_objects_and_functions_lose_nothing(self, collector: Collector) -> None:
        shared = collector.tool_call("shared")
        start = threading.Barrier(8)

        @collector.tool("function")
        def function(i: int) -> None:
            with shared:
                if i % 4 == 0:
                    raise ValueError

        def work() -> None:
            start.wait()
            for i in range(200):
                with suppress(ValueError):
                    function(i)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counted = {tool.name: (tool.success_count, tool.fail_count) for tool in collector.snapshot().tools}
        assert counted == {"shared": (1200, 400), "function": (1200, 400)}
        assert not shared._under_way


class TestOthersAtOnce:
    """The one's failure is not the other's, although both entered the same object."""

    @staticmethod
    def told(sessions: Path) -> list[tuple[bool, int]]:
        """The outcome and the duration of each call, in the order in which they were recorded."""
        lines = [
            line
            for segment in sorted((sessions / "s" / "segments").iterdir())
            for line in segment.read_bytes()[DATA_OFFSET:].rstrip(b"\0").splitlines()
        ]
        records = [orjson.loads(line) for line in lines]
        records.sort(key=lambda record: record["time"])
        ended = [record for record in records if record["event"] == "tool_call"]
        return [(record["success"], record["duration_ms"]) for record in ended]

    @pytest.mark.parametrize("is_async", [False, True])
    def test_tasks_that_say_they_failed_or_raise(
        self, tmp_path: Path, collector: Collector, clock: Clock, is_async: bool
    ) -> None:
        stopwatch = collector.tool_call("fetch")
        gates = [asyncio.Event() for _ in range(3)]

        async def block(i: int, call: Measured) -> None:
            call.success = i != 0  # the first one says it, the last one raises
            await gates[i].wait()
            if i == 2:
                raise ValueError

        async def fetch(i: int) -> None:
            if is_async:
                async with stopwatch as call:
                    await block(i, call)
            else:
                with stopwatch as call:
                    await block(i, call)

        async def open_gates() -> None:
            for gate in gates:  # the first one in is the first one out
                clock.advance(10)
                gate.set()
                await asyncio.sleep(0)

        async def main() -> None:
            found = await asyncio.gather(*map(fetch, range(3)), open_gates(), return_exceptions=True)
            assert [type(result) for result in found] == [type(None), type(None), ValueError, type(None)]

        asyncio.run(main())
        assert self.told(tmp_path) == [(False, 10), (True, 20), (False, 30)]
        assert not stopwatch._under_way

    @pytest.mark.parametrize("is_async", [False, True])
    def test_tasks_with_an_exit_stack(
        self, tmp_path: Path, collector: Collector, clock: Clock, is_async: bool
    ) -> None:
        stopwatch = collector.tool_call("fetch")
        gates = [asyncio.Event(), asyncio.Event()]

        async def fetch(i: int) -> None:
            async with AsyncExitStack() as stack:
                entered = stack.enter_async_context(stopwatch) if is_async else None
                call = await entered if entered else stack.enter_context(stopwatch)
                call.success = i == 1
                await gates[i].wait()

        async def main() -> None:
            tasks = [asyncio.create_task(fetch(i)) for i in range(2)]
            for task, gate in zip(tasks, gates, strict=True):
                await asyncio.sleep(0)
                clock.advance(10)
                gate.set()
                await task

        asyncio.run(main())
        assert self.told(tmp_path) == [(False, 10), (True, 20)]

    def test_threads(self, tmp_path: Path, collector: Collector, clock: Clock) -> None:
        stopwatch = collector.tool_call("bash")
        gates = [threading.Event(), threading.Event()]
        entered = threading.Barrier(3)

        def bash(i: int) -> None:
            with stopwatch as call:
                call.success = i == 1
                entered.wait()
                gates[i].wait()

        threads = [threading.Thread(target=bash, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        entered.wait()
        for thread, gate in zip(threads, gates, strict=True):
            clock.advance(10)
            gate.set()
            thread.join()
        assert self.told(tmp_path) == [(False, 10), (True, 20)]
        assert not stopwatch._under_way

    def test_generators_that_one_thread_runs_in_turns(
        self, tmp_path: Path, collector: Collector, clock: Clock
    ) -> None:
        stopwatch = collector.tool_call("tail")

        def tail(i: int) -> Iterator[int]:
            with stopwatch as call:
                call.success = i == 1
                yield i

        generators = [tail(0), tail(1)]
        for generator in generators:
            next(generator)
        for generator in generators:
            clock.advance(10)
            assert next(generator, None) is None
        assert self.told(tmp_path) == [(False, 10), (True, 20)]

    def test_async_generators_that_one_task_runs_in_turns(
        self, tmp_path: Path, collector: Collector, clock: Clock
    ) -> None:
        stopwatch = collector.tool_call("tail")

        async def tail(i: int) -> AsyncIterator[int]:
            async with stopwatch as call:
                call.success = i == 1
                yield i

        async def main() -> None:
            generators = [tail(0), tail(1)]
            for generator in generators:
                await anext(generator)
            for generator in generators:
                clock.advance(10)
                assert await anext(generator, None) is None

        asyncio.run(main())
        assert self.told(tmp_path) == [(False, 10), (True, 20)]

    def test_generator_that_is_driven_in_another_context_and_thread(
        self, tmp_path: Path, collector: Collector, clock: Clock
    ) -> None:
        stopwatch = collector.tool_call("tail")

        def tail(i: int) -> Iterator[int]:
            with stopwatch as call:
                call.success = i == 1
                yield i

        generators = [tail(0), tail(1)]
        for generator in generators:
            copy_context().run(next, generator)
        with stopwatch:
            for generator in generators:
                clock.advance(10)
                thread = threading.Thread(target=list, args=(generator,))
                thread.start()
                thread.join()
        assert self.told(tmp_path) == [(False, 10), (True, 20), (True, 20)]
        assert not stopwatch._under_way

    def test_block_without_a_with_that_is_left_in_another_context(
        self, tmp_path: Path, collector: Collector, clock: Clock
    ) -> None:
        stopwatch = collector.tool_call("bash")
        one, other = Context(), Context()
        for _ in range(10):
            with stopwatch:
                one.run(stopwatch.__enter__).success = False
                clock.advance(1)
                other.run(stopwatch.__exit__, None, None, None)
        assert self.told(tmp_path) == [(False, 1), (True, 1)] * 10
        assert not stopwatch._under_way
        assert len(one.run(timing._entered.get)) <= 1
        assert not other.run(timing._entered.get)

    def test_block_that_is_left_twice_is_recorded_once(self, tmp_path: Path, collector: Collector) -> None:
        stopwatch = collector.tool_call("bash")
        stopwatch.__enter__()
        stopwatch.__exit__(None, None, None)
        with pytest.raises(RuntimeError, match="left more often"):
            stopwatch.__exit__(None, None, None)
        assert self.told(tmp_path) == [(True, 0)]

    def test_children_that_are_forked_in_the_block(self, collector: Collector) -> None:
        stopwatch = collector.tool_call("bash")
        with stopwatch as outer:
            with stopwatch as inner:
                inner.success = False
                pid = os.fork()
            assert outer.success
        if not pid:
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert measured(collector) == {"bash": (1, 1, 0)}

    def test_stopwatch_that_is_kept_does_not_grow(self, collector: Collector) -> None:
        stopwatch = collector.tool_call("bash")

        async def fetch() -> None:
            async with stopwatch:
                await asyncio.sleep(0)

        async def main() -> int:
            for _ in range(20):
                await asyncio.gather(*(fetch() for _ in range(50)))
            return len(timing._entered.get())

        assert Context().run(asyncio.run, main()) == 0
        assert not stopwatch._under_way

    def test_context_keeps_few_of_the_blocks_that_are_left_elsewhere_or_never(
        self, collector: Collector
    ) -> None:
        stopwatch, context, most = collector.tool_call("bash"), Context(), 0
        left: list[Measured] = []
        for i in range(1000):
            left.append(context.run(stopwatch.__enter__))
            if i % 2:
                Context().run(stopwatch.__exit__, None, None, None)
            most = max(most, len(context.run(timing._entered.get)))
        assert 1 < most < 100
        assert len(stopwatch._under_way) == 500


class TestAsync:
    def test_async_with_measures_what_is_awaited_in_it(self, collector: Collector, clock: Clock) -> None:
        async def main() -> None:
            async with collector.tool_call("fetch") as call, collector.phase("plan"):
                clock.advance(2)
                await asyncio.sleep(0)
                clock.advance(3)
                call.success = False

        asyncio.run(main())
        assert measured(collector) == {"fetch": (0, 1, 5)}
        assert untimed(collector.snapshot().phases) == [PhaseMetric("plan", 5, 1, success=True)]

    def test_coroutine_function_is_measured_from_its_first_step_to_its_last(
        self, collector: Collector, clock: Clock
    ) -> None:
        @collector.tool("fetch")
        async def fetch(url: str, *, retries: int = 1) -> str:
            await asyncio.sleep(0)
            clock.advance(retries)
            return url

        coroutine = fetch("a", retries=4)
        clock.advance(1000)
        assert not measured(collector)
        assert_type(asyncio.run(coroutine), str)
        assert measured(collector) == {"fetch": (1, 0, 4)}

    def test_coroutine_that_is_never_awaited_is_not_recorded(self, collector: Collector) -> None:
        @collector.tool("fetch")
        async def fetch() -> None:
            raise AssertionError

        fetch().close()
        assert not measured(collector)

    def test_task_that_is_cancelled_has_failed_and_is_cancelled(
        self, collector: Collector, clock: Clock
    ) -> None:
        @collector.tool("fetch")
        async def fetch() -> None:
            await asyncio.Event().wait()

        async def main() -> None:
            task = asyncio.create_task(fetch())
            await asyncio.sleep(0)
            clock.advance(8)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()

        asyncio.run(main())
        assert measured(collector) == {"fetch": (0, 1, 8)}

    def test_tasks_that_overlap_are_measured_each_by_itself(self, collector: Collector, clock: Clock) -> None:
        @collector.tool("fetch")
        async def fetch(gate: asyncio.Event) -> None:
            await gate.wait()

        async def main() -> None:
            gates = [asyncio.Event(), asyncio.Event()]
            tasks = [asyncio.create_task(fetch(gate)) for gate in gates]
            await asyncio.sleep(0)
            for gate, task in zip(gates, tasks, strict=True):
                clock.advance(10)
                gate.set()
                await task

        asyncio.run(main())
        assert measured(collector) == {"fetch": (2, 0, 30)}


class Shell:
    """What a user's class of tools looks like."""

    recorder: Recorder = Recorder(None)

    async def __call__(self) -> int:
        await asyncio.sleep(0)
        return 3


class TestDecorator:
    def test_function_keeps_what_is_known_about_it(self, collector: Collector) -> None:
        def grep(pattern: str, /, *files: str, count: bool = False) -> list[str]:
            """Search."""
            return [pattern, *files, str(count)]

        measured = collector.tool("grep")(grep)
        assert (measured.__name__, measured.__qualname__, measured.__doc__) == (
            "grep",
            grep.__qualname__,
            "Search.",
        )
        assert inspect.signature(measured) == inspect.signature(grep)
        assert_type(measured("x", "a", "b", count=True), list[str])
        assert measured("x", "a", "b", count=True) == ["x", "a", "b", "True"]

    def test_coroutine_function_stays_one(self, collector: Collector) -> None:
        async def fetch() -> None: ...

        measured = collector.tool("fetch")(fetch)
        assert inspect.iscoroutinefunction(measured)
        assert inspect.signature(measured) == inspect.signature(fetch)

    def test_function_that_raises_has_failed_and_its_exception_goes_on(
        self, collector: Collector, clock: Clock
    ) -> None:
        end = KeyboardInterrupt()

        @collector.tool("bash")
        def bash() -> None:
            clock.advance(2)
            raise end

        with pytest.raises(KeyboardInterrupt) as caught:
            bash()
        assert caught.value is end
        assert measured(collector) == {"bash": (0, 1, 2)}

    def test_function_that_calls_itself_counts_each_call(self, collector: Collector, clock: Clock) -> None:
        @collector.tool("walk")
        def walk(depth: int) -> int:
            clock.advance(1)
            return walk(depth - 1) + 1 if depth else 0

        assert walk(3) == 3
        assert measured(collector) == {"walk": (4, 0, 4 + 3 + 2 + 1)}

    def test_methods_partials_and_callable_objects_are_functions(self, collector: Collector) -> None:
        class Tool:
            @collector.tool("method")
            def method(self, i: int) -> int:
                return i

            @staticmethod
            @collector.tool("static")
            def static(i: int) -> int:
                return i

        assert Tool().method(1) == 1
        assert Tool.static(2) == 2
        assert collector.tool("partial")(partial(max, 3))(2) == 3
        assert asyncio.run(collector.tool("object")(Shell())()) == 3
        assert set(measured(collector)) == {"method", "static", "partial", "object"}

    def test_generators_are_refused_for_the_time_of_their_call_says_nothing(
        self, collector: Collector
    ) -> None:
        def lines() -> Iterator[int]:
            yield 1

        async def chunks() -> AsyncIterator[int]:
            yield 1

        for function in (lines, chunks, partial(lines)):
            with pytest.raises(TypeError, match=r"with recorder\.tool_call"):
                collector.tool("tail")(function)

    @pytest.mark.parametrize("thing", [Shell, staticmethod(len), property(len), None, 3, "bash"])
    def test_what_is_no_function_is_refused(self, collector: Collector, thing: Any) -> None:
        with pytest.raises(TypeError, match="a tool is a function"):
            collector.tool("bash")(thing)

    def test_forgotten_name_is_told_where_the_function_is_decorated(self, collector: Collector) -> None:
        with pytest.raises(TypeError, match=r'the name of the tool: @recorder\.tool\("NAME"\)'):

            @collector.tool  # type: ignore[arg-type]
            def bash() -> None: ...


class TestPhase:
    def test_transition_is_recorded_on_entry_and_the_rest_on_exit(
        self, collector: Collector, clock: Clock
    ) -> None:
        with collector.phase(WorkflowPhase.PLAN):
            assert untimed(collector.snapshot().phases) == [PhaseMetric("plan", transition_count=1)]
            clock.advance(40)
        assert untimed(collector.snapshot().phases) == [PhaseMetric("plan", 40, 1, success=True)]

    def test_latest_block_tells_duration_and_outcome(self, collector: Collector, clock: Clock) -> None:
        with collector.phase("plan"):
            clock.advance(40)
        end = SystemExit(1)
        with pytest.raises(SystemExit) as caught, collector.phase("plan"):
            clock.advance(2, end)
        assert caught.value is end
        assert untimed(collector.snapshot().phases) == [PhaseMetric("plan", 2, 2, success=False)]

    def test_phase_can_say_that_it_failed(self, collector: Collector) -> None:
        with collector.phase("verify") as phase:
            phase.success = False
        assert untimed(collector.snapshot().phases) == [PhaseMetric("verify", 0, 1, success=False)]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


RECORD = "from m31a_mp import Recorder; Recorder.from_env().record_tool_call('child', True, 5)"


class TestRun:
    def test_result_is_that_of_subprocess_run(self, collector: Collector, clock: Clock) -> None:
        command = ["sh", "-c", "cat; echo error >&2; exit 3"]
        result = collector.run(command, tool="sh", input="in", capture_output=True, text=True)
        assert result.args == command
        assert (result.returncode, result.stdout, result.stderr) == (3, "in", "error\n")
        clock.advance(1)
        assert measured(collector) == {"sh": (0, 1, 0)}

    def test_status_0_is_success(self, collector: Collector, clock: Clock, tmp_path: Path) -> None:
        popen = subprocess.Popen.communicate

        def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
            clock.advance(12.5)
            return popen(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subprocess.Popen, "communicate", slow)
            assert collector.run("pwd > here", tool="sh", shell=True, cwd=tmp_path).returncode == 0
        assert (tmp_path / "here").read_text("utf-8") == f"{tmp_path}\n"
        assert measured(collector) == {"sh": (1, 0, 12)}

    @pytest.mark.parametrize(
        ("command", "options", "error"),
        [
            (["sh", "-c", "exit 7"], {"check": True}, subprocess.CalledProcessError),
            (["sleep", "100"], {"timeout": 0.01}, subprocess.TimeoutExpired),
            (["/no/such/program"], {}, FileNotFoundError),
            (["true"], {"cwd": "/no/such/directory"}, FileNotFoundError),
            (["true"], {"no_such_option": 1}, TypeError),
            (["true"], {"capture_output": True, "stdout": subprocess.PIPE}, ValueError),
        ],
    )
    def test_whatever_subprocess_run_raises_is_raised_and_a_failure(
        self, collector: Collector, command: list[str], options: dict[str, Any], error: type[Exception]
    ) -> None:
        with pytest.raises(error) as wanted:
            subprocess.run(command, **options)  # noqa: PLW1510
        with pytest.raises(error) as caught:
            collector.run(command, tool="it", **options)
        # How long it waited is not the same to the nanosecond.
        assert str(caught.value).partition(" after ")[0] == str(wanted.value).partition(" after ")[0]
        tool = collector.snapshot().tools[0]
        assert (tool.name, tool.success_count, tool.fail_count) == ("it", 0, 1)

    def test_command_that_is_killed_has_failed(self, collector: Collector) -> None:
        assert collector.run(["sh", "-c", "kill -9 $$"], tool="sh").returncode == -9
        assert collector.snapshot().tools[0].fail_count == 1

    def test_child_records_into_the_session(self, collector: Collector) -> None:
        before = dict(os.environ)
        collector.run(python(RECORD), tool="python", check=True)
        assert measured(collector)["child"] == (1, 0, 5)
        assert dict(os.environ) == before

    def test_child_of_a_worker_records_into_the_session(self, collector: Collector, tmp_path: Path) -> None:
        attach("s", tmp_path).run(python(RECORD), tool="python", check=True)
        assert measured(collector)["child"] == (1, 0, 5)

    def test_given_environment_is_all_that_the_child_gets_besides_the_session(
        self, collector: Collector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("M31A_MP_SESSION", "/another/session")
        monkeypatch.setenv("NOT_GIVEN", "1")
        given = {"GIVEN": "1"}
        result = collector.run(["/usr/bin/env"], tool="env", env=given, capture_output=True, text=True)
        lines = {f"{name}={value}" for name, value in collector.env().items()}
        assert set(result.stdout.splitlines()) == {"GIVEN=1"} | lines
        assert given == {"GIVEN": "1"}

    def test_environment_whose_names_are_bytes_names_the_session_once(self, collector: Collector) -> None:
        given = {b"M31A_MP_SESSION": b"/another/session", b"\xff": b"\xfe"}
        result = collector.run(["/usr/bin/env"], tool="env", env=given, capture_output=True)
        lines = result.stdout.splitlines()
        assert b"\xff=\xfe" in lines
        sessions = [line for line in lines if line.startswith(b"M31A_MP_SESSION=")]
        assert sessions == [b"M31A_MP_SESSION=" + collector.env()["M31A_MP_SESSION"].encode()]

    def test_child_of_a_durable_session_is_durable(self, sessions: Path) -> None:
        with Collector("d", sessions, durability="disk") as collector:
            result = collector.run(["/usr/bin/env"], tool="env", capture_output=True, text=True)
        assert "M31A_MP_DURABILITY=disk" in result.stdout.splitlines()


class TestDisabled:
    def test_everything_runs_and_nothing_is_recorded_or_made(self, sessions: Path) -> None:
        collector = Collector("s", sessions, enabled=False)

        @collector.tool("function")
        def function() -> int:
            return 1

        with collector.phase("plan") as phase, collector.tool_call("bash"):
            phase.success = False
            assert function() == 1
            result = collector.run(["/usr/bin/env"], tool="env", capture_output=True, text=True)
        assert result.returncode == 0
        assert "M31A_MP_SESSION=" in result.stdout.splitlines()  # not that of a session further out
        assert collector.snapshot().tools == []
        assert not sessions.exists()

    def test_exceptions_go_on_their_way(self) -> None:
        with pytest.raises(ValueError, match="x"), Recorder(None).tool_call("bash"):
            raise ValueError("x")


def test_tool_metric_of_a_measured_block_is_like_any_other(collector: Collector, clock: Clock) -> None:
    for duration in (10, 20):
        with collector.tool_call("bash"):
            clock.advance(duration)
    collector.record_tool_call("bash", False, 30)
    assert bare(collector.snapshot().tools) == [ToolMetric("bash", 3, 2, 1, 60, 20.0)]


class TestWhyItFailed:
    def test_block_that_says_why_has_failed(self, collector: Collector) -> None:
        with collector.tool_call("bash") as call:
            call.error = "timeout"
        [tool] = collector.snapshot().tools
        assert (tool.fail_count, tool.errors) == (1, {"timeout": 1})

    def test_error_of_a_call_that_succeeded_is_refused(self, collector: Collector) -> None:
        with pytest.raises(ValueError, match="error is of a call that failed"):
            collector.record_tool_call("bash", True, 1, error="timeout")
        assert collector.snapshot().tools == []
