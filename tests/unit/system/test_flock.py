"""The file lock: the same as flock(1), free when its holder is gone, never shared by a fork."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from m31a_mp.system.flock import FileLock, holders, is_free, is_held, is_locked


def test_lock_is_exclusive_between_objects_and_free_after_release(tmp_path: Path) -> None:
    one, other = FileLock(str(tmp_path / "lock")), FileLock(str(tmp_path / "lock"))
    assert one.acquire()
    assert one.held
    assert not other.acquire()
    assert not other.held
    one.release()
    one.release()
    assert not one.held
    assert other.acquire()
    other.release()


def test_lock_is_that_of_flock(tmp_path: Path) -> None:
    lock = FileLock(str(tmp_path / "lock"))
    with (tmp_path / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert not lock.acquire()
        fcntl.flock(stream, fcntl.LOCK_UN)
        assert lock.acquire()
        with pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.release()
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_file_of_a_lock_stays_and_is_private(tmp_path: Path) -> None:
    lock = FileLock(str(tmp_path / "lock"))
    assert lock.acquire()
    lock.release()
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


def test_lock_that_is_dropped_is_free(tmp_path: Path) -> None:
    lock = FileLock(str(tmp_path / "lock"))
    assert lock.acquire()
    del lock
    other = FileLock(str(tmp_path / "lock"))
    assert other.acquire()
    other.release()


def test_waiting_for_a_lock_ends_when_it_is_given_back(tmp_path: Path) -> None:
    one, other = FileLock(str(tmp_path / "lock")), FileLock(str(tmp_path / "lock"))
    assert one.acquire()
    thread = threading.Thread(target=one.release)
    thread.start()
    assert other.acquire(60)
    thread.join()
    other.release()


def test_no_descriptor_is_left_by_locks_that_were_not_had(tmp_path: Path) -> None:
    held = FileLock(str(tmp_path / "lock"))
    assert held.acquire()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        assert not FileLock(str(tmp_path / "lock")).acquire(0.0001)
    assert len(os.listdir("/proc/self/fd")) == before
    held.release()
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_holders_are_told_by_pid(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holders(str(path)) == []
    lock = FileLock(str(path))
    assert lock.acquire()
    assert holders(str(path)) == [os.getpid()]
    lock.release()
    assert holders(str(path)) == []


def test_who_asks_whether_a_lock_is_taken_does_not_seem_to_hold_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("the line that a dead owner left")
    with path.open("r+b") as one, path.open("r+b") as other:
        assert is_free(one.fileno())
        assert is_free(other.fileno())
        assert not is_locked(str(path))
        assert not is_held(str(path))
        assert holders(str(path)) == []
    lock = FileLock(str(path))
    assert lock.acquire()
    with path.open("r+b") as one:
        assert not is_free(one.fileno())
    assert is_locked(str(path))
    lock.release()


def test_forked_child_does_not_hold_the_lock_and_cannot_give_it_back(tmp_path: Path) -> None:
    lock = FileLock(str(tmp_path / "lock"))
    assert lock.acquire()
    ready, go = os.pipe()
    done, tried = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            lock.release()
            status = 2 if lock.held or FileLock(str(tmp_path / "lock")).acquire() else 0
            os.write(tried, b"x")
            os.close(go)
            os.read(ready, 1)  # lives on until the parent has let go
        finally:
            os._exit(status)
    os.close(ready)
    os.close(tried)
    os.read(done, 1)  # not before the child has tried
    os.close(done)
    assert lock.held
    lock.release()
    other = FileLock(str(tmp_path / "lock"))
    assert other.acquire()  # though the child lives
    os.close(go)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    other.release()


def test_descriptor_that_the_program_closed_and_reused_is_left_alone(tmp_path: Path) -> None:
    lock = FileLock(str(tmp_path / "lock"))
    assert lock.acquire()
    fd = lock.fd
    os.close(fd)
    mine = os.open(tmp_path / "mine", os.O_RDWR | os.O_CREAT)
    assert mine == fd
    assert not lock.held
    lock.release()
    assert os.write(mine, b"still open") == 10
    os.close(mine)


def test_symlink_in_place_of_a_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        FileLock(str(tmp_path / "lock")).acquire()
    assert not (tmp_path / "victim").exists()
