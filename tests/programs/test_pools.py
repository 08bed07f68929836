"""Real pools, as users make them: every record counts, and their workers leave nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import joblib  # type: ignore[import-untyped]
import pytest
from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]

from m31a_mp import Collector, Recorder, attach, compact, load, verify
from metrics_of import calls, count, files_under
from workers import Counters

METHODS = ["fork", "forkserver", "spawn"]
TASKS = 24

_recorder = Recorder(None)


def start(recorder: Recorder) -> None:
    """Give the worker its recorder: what a pool's `initializer` is for."""
    global _recorder  # noqa: PLW0603  # a pool has no other way to give its tasks something for good
    _recorder = recorder


def start_by_name(sessions: Path) -> None:
    start(attach("s", sessions))


def start_from_env() -> None:
    start(Recorder.from_env())


def work(i: int) -> int:
    with _recorder.tool_call("task") as call:
        call.success = i % 3 != 0
    return os.getpid()


def work_with(recorder: Recorder, i: int) -> int:
    recorder.record_tool_call("task", i % 3 != 0, 1)
    return os.getpid()


def work_and_die(i: int) -> None:
    work(i)
    os.kill(os.getpid(), signal.SIGKILL)


def work_and_hang(numbers: Counters, i: int) -> None:
    work(i)
    numbers[i] = 1
    signal.pause()


def run_child(i: int) -> int:
    """A worker whose tool is a command that records, too."""
    _recorder.record_tool_call("task", i % 3 != 0, 1)
    return _recorder.run(["true"], tool="true").returncode


class Service:
    """An object that is passed to workers, with a recorder among its own."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def work(self, i: int) -> int:
        return work_with(self.recorder, i)


@pytest.fixture(autouse=True)
def _nothing_is_damaged(tmp_path: Path) -> Iterator[None]:
    yield  # until the collector is stopped, which is made later
    assert verify(tmp_path, "s") == []


AT_REST = {"metrics.json", "journal.lock", "owner.lock", "segments"}


def assert_counted(collector: Collector, tmp_path: Path, tasks: int = TASKS) -> None:
    """All tasks are counted, and after a flush there is nothing of the workers that are gone."""
    failures = len(range(0, tasks, 3))
    for metrics in (collector.snapshot(), None):
        if metrics is None:
            collector.flush()
            metrics = load(tmp_path, "s")  # noqa: PLW2901  # the same question once more
            assert metrics
        tool = next(tool for tool in metrics.tools if tool.name == "task")
        assert (tool.call_count, tool.fail_count) == (tasks, failures)
        assert (metrics.dropped, metrics.rejected) == ({}, 0)
    assert files_under(tmp_path / "s") == AT_REST


@pytest.mark.parametrize("method", METHODS)
class TestPool:
    @pytest.mark.slow
    def test_initializer(self, collector: Collector, tmp_path: Path, method: str) -> None:
        with get_context(method).Pool(2, start, (collector,)) as pool:
            pool.map(work, range(TASKS), chunksize=1)
            pool.close()
            pool.join()
        assert_counted(collector, tmp_path)

    @pytest.mark.slow
    def test_initializer_that_attaches_by_name(
        self, collector: Collector, tmp_path: Path, method: str
    ) -> None:
        with get_context(method).Pool(2, start_by_name, (tmp_path,)) as pool:
            pool.map(work, range(TASKS), chunksize=1)
            pool.close()
            pool.join()
        assert_counted(collector, tmp_path)

    @pytest.mark.slow
    def test_collector_as_an_argument(self, collector: Collector, tmp_path: Path, method: str) -> None:
        with get_context(method).Pool(2) as pool:
            pool.starmap(work_with, [(collector, i) for i in range(TASKS)], chunksize=1)
            pool.close()
            pool.join()
        assert_counted(collector, tmp_path)

    @pytest.mark.slow
    def test_workers_that_are_recycled_leave_nothing_behind(
        self, collector: Collector, tmp_path: Path, method: str
    ) -> None:
        with get_context(method).Pool(2, start, (collector,), maxtasksperchild=6) as pool:
            pids = pool.map(work, range(TASKS), chunksize=1)
            pool.close()
            pool.join()
        assert len(set(pids)) >= TASKS // 6  # the last tasks may be dealt to one worker more
        assert_counted(collector, tmp_path)

    @pytest.mark.slow
    def test_worker_that_is_killed_is_counted_and_leaves_nothing_behind(
        self, collector: Collector, tmp_path: Path, method: str
    ) -> None:
        with get_context(method).Pool(2, start, (collector,)) as pool:
            pool.apply_async(work_and_die, (0,))  # never returns: a pool forgets such a task
            pool.map(work, range(1, TASKS), chunksize=1)
            while multiprocessing.active_children() and count(collector.snapshot()) < TASKS:
                time.sleep(0.001)
            pool.terminate()
            pool.join()
        assert_counted(collector, tmp_path)

    @pytest.mark.slow
    def test_pool_that_is_terminated_at_work_leaves_nothing_behind(
        self, collector: Collector, tmp_path: Path, method: str
    ) -> None:
        numbers = Counters(tmp_path / "numbers", 2)
        with get_context(method).Pool(2, start, (collector,)) as pool:
            for i in range(2):
                pool.apply_async(work_and_hang, (numbers, i))
            for i in range(2):
                numbers.wait_for(i, 1)
        pool.join()
        assert_counted(collector, tmp_path, 2)


@pytest.mark.parametrize("method", METHODS)
class TestExecutor:
    @pytest.mark.slow
    def test_initializer(self, collector: Collector, tmp_path: Path, method: str) -> None:
        with ProcessPoolExecutor(2, get_context(method), start, (collector,)) as pool:
            list(pool.map(work, range(TASKS)))
        assert_counted(collector, tmp_path)

    @pytest.mark.slow
    def test_collector_as_an_argument(self, collector: Collector, tmp_path: Path, method: str) -> None:
        with ProcessPoolExecutor(2, get_context(method)) as pool:
            list(pool.map(work_with, [collector] * TASKS, range(TASKS)))
        assert_counted(collector, tmp_path)

    @pytest.mark.slow
    def test_worker_that_is_killed_breaks_the_pool_and_is_counted(
        self, collector: Collector, tmp_path: Path, method: str
    ) -> None:
        with ProcessPoolExecutor(1, get_context(method), start, (collector,)) as pool:
            assert pool.submit(work, 1).result()
            with pytest.raises(BrokenProcessPool):
                pool.submit(work_and_die, 0).result()
        assert_counted(collector, tmp_path, 2)

    @pytest.mark.slow
    def test_owner_that_keeps_its_file_fresh(self, tmp_path: Path, method: str) -> None:
        with Collector("s", tmp_path, flush_interval=0.001) as collector:
            with ProcessPoolExecutor(2, get_context(method), start, (collector,)) as pool:
                list(pool.map(run_child, range(TASKS)))
            assert_counted(collector, tmp_path)
        assert calls(collector.snapshot()) == {
            "task": TASKS,
            "true": TASKS,
        }

    @pytest.mark.slow
    def test_executor_that_outlives_the_collector_loses_nothing(self, tmp_path: Path, method: str) -> None:
        with Collector("s", tmp_path) as collector:
            pool = ProcessPoolExecutor(1, get_context(method), start, (collector,))
            assert pool.submit(work, 0).result()
        assert count(collector.snapshot()) == 1
        assert pool.submit(work, 1).result()
        pool.shutdown()
        assert compact(tmp_path, "s").metrics.tools[0].call_count == 2
        assert files_under(tmp_path / "s") == AT_REST


@pytest.mark.slow
def test_method_of_an_object_that_has_the_collector(collector: Collector, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(Service(collector).work, range(TASKS)))
    assert_counted(collector, tmp_path)


@pytest.mark.slow
def test_executor_that_recycles_its_workers_leaves_nothing_behind(
    collector: Collector, tmp_path: Path
) -> None:
    # One worker and one task at a time: with more, the executor of Python 3.11 waits for ever.
    context = get_context("forkserver")
    with ProcessPoolExecutor(1, context, start, (collector,), max_tasks_per_child=2) as pool:
        pids = {pool.submit(work, i).result() for i in range(6)}
    assert len(pids) == 3
    assert_counted(collector, tmp_path, 6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])  # the fork server has an environment of its own
def test_initializer_finds_the_session_in_the_environment(
    collector: Collector, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in collector.env().items():
        monkeypatch.setenv(name, value)
    with ProcessPoolExecutor(2, get_context(method), start_from_env) as pool:
        list(pool.map(work, range(TASKS)))
    assert_counted(collector, tmp_path)


def test_threads_of_a_pool_share_the_collector(collector: Collector) -> None:
    start(collector)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(TASKS)))
    finally:
        start(Recorder(None))
    metrics = collector.snapshot()
    assert [(tool.call_count, tool.fail_count) for tool in metrics.tools] == [(TASKS, TASKS // 3)]


@pytest.fixture
def _no_workers_are_left() -> Iterator[None]:
    yield
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


@pytest.mark.usefixtures("_no_workers_are_left")
class TestJoblib:
    @pytest.mark.slow
    def test_collector_as_an_argument(self, collector: Collector, tmp_path: Path) -> None:
        tasks = (joblib.delayed(work_with)(collector, i) for i in range(TASKS))
        pids = joblib.Parallel(n_jobs=2)(tasks)
        assert os.getpid() not in pids
        assert count(collector.snapshot()) == TASKS
        get_reusable_executor().shutdown(wait=True)
        assert_counted(collector, tmp_path)

    @pytest.mark.slow
    def test_workers_that_wait_for_more_keep_their_records_and_are_counted_again(
        self, collector: Collector, tmp_path: Path
    ) -> None:
        with joblib.Parallel(n_jobs=2) as parallel:
            for i in range(1, 4):
                parallel(joblib.delayed(work_with)(collector, i) for i in range(TASKS))
                collector.flush()
                assert count(collector.snapshot()) == i * TASKS
        get_reusable_executor().shutdown(wait=True, kill_workers=True)
        collector.flush()
        assert files_under(tmp_path / "s") == AT_REST

    @pytest.mark.slow
    def test_function_of_the_main_program_that_has_the_collector_in_it(
        self, collector: Collector, tmp_path: Path
    ) -> None:
        @collector.tool("task")
        def task(i: int) -> int:
            if i % 3 == 0:
                raise ValueError(i)
            return os.getpid()

        def attempt(i: int) -> None:
            with suppress(ValueError):
                task(i)

        joblib.Parallel(n_jobs=2)(joblib.delayed(attempt)(i) for i in range(TASKS))
        get_reusable_executor().shutdown(wait=True)
        assert_counted(collector, tmp_path)

    @pytest.mark.parametrize("backend", ["multiprocessing", "threading", "sequential"])
    def test_other_backends(self, collector: Collector, tmp_path: Path, backend: str) -> None:
        tasks = (joblib.delayed(work_with)(collector, i) for i in range(TASKS))
        joblib.Parallel(n_jobs=2, backend=backend)(tasks)
        assert count(collector.snapshot()) == TASKS
        collector.stop()
        assert files_under(tmp_path / "s") == AT_REST

    @pytest.mark.slow
    def test_worker_that_is_killed_is_counted(self, collector: Collector, tmp_path: Path) -> None:
        def die(i: int) -> None:
            work_with(collector, i)
            os.kill(os.getpid(), signal.SIGKILL)

        with pytest.raises(Exception, match="terminated"):
            joblib.Parallel(n_jobs=2)([joblib.delayed(die)(0), joblib.delayed(work_with)(collector, 1)])
        get_reusable_executor().shutdown(wait=True, kill_workers=True)
        collector.flush()
        assert count(collector.snapshot()) >= 1
        assert files_under(tmp_path / "s") == AT_REST


@pytest.mark.slow
def test_pool_forked_by_a_program_with_threads_that_record(collector: Collector, tmp_path: Path) -> None:
    done = threading.Event()

    def record() -> None:
        while not done.is_set():
            collector.record_tool_call("thread", True, 1)

    threads = [threading.Thread(target=record) for _ in range(2)]
    for thread in threads:
        thread.start()
    with get_context("fork").Pool(2, start, (collector,), maxtasksperchild=1) as pool:
        pool.map(work, range(TASKS), chunksize=1)
        pool.close()
        pool.join()
    done.set()
    for thread in threads:
        thread.join()
    collector.stop()
    metrics = load(tmp_path, "s")
    assert metrics
    assert calls(metrics)["task"] == TASKS
    assert files_under(tmp_path / "s") == AT_REST
