"""Bytes that reach the disk: whole, in order, and where they belong."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from m31a_mp import Collector
from m31a_mp.system import files


@pytest.mark.parametrize("planted", ["file", "symlink", "dangling"])
def test_what_stands_under_the_temporary_name_is_not_followed(tmp_path: Path, planted: str) -> None:
    victim = tmp_path / "victim"
    temporary = tmp_path / ".file.tmp"
    if planted == "file":
        temporary.write_bytes(b"left by a crash")
    else:
        temporary.symlink_to(victim)
    if planted == "symlink":
        victim.write_bytes(b"precious")
    files.replace(str(tmp_path / "file"), b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert stat.S_ISREG((tmp_path / "file").lstat().st_mode)
    assert planted != "symlink" or victim.read_bytes() == b"precious"
    assert planted != "dangling" or not victim.exists()


def test_symlink_in_place_of_the_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "file").symlink_to(victim)
    files.replace(str(tmp_path / "file"), b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "file").is_symlink()


@pytest.mark.parametrize("most", [1, 3])
def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:most], offset))
    files.replace(str(tmp_path / "file"), b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_write_that_makes_no_progress_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = iter([3, 0])
    monkeypatch.setattr(os, "pwrite", lambda *_: next(writes))
    with pytest.raises(OSError, match="No space"):
        files.replace(str(tmp_path / "file"), b"0123456789")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277, 0o777])
def test_file_is_private_and_usable_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        files.replace(str(tmp_path / "file"), b"new")
        files.make_directory(str(tmp_path / "directory"))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "directory").stat().st_mode) == 0o700


def test_symlink_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic"):
        files.read_private(str(tmp_path / "link"), 100)


def test_pipe_in_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert files.read_private(str(tmp_path / "pipe"), 100) == b""


def test_sync_of_no_file_is_nothing(tmp_path: Path, durable_calls: list[tuple[str, str]]) -> None:
    files.sync(str(tmp_path / "file"))
    assert durable_calls == []


def test_sync_that_failed_writes_the_bytes_anew_and_never_repeats_the_fsync_of_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    failed = path.stat().st_ino
    fsync = os.fsync
    synced = []

    def once(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        if synced == [failed]:
            raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", once)
    files.sync(str(path))
    assert path.read_bytes() == b"bytes"
    assert synced.count(failed) == 1
    assert path.stat().st_ino in synced
    assert tmp_path.stat().st_ino in synced


@pytest.mark.parametrize("failures", [1, 2])
def test_flush_after_a_failed_fsync_raises_or_has_written_anew(
    sessions: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    collector = Collector("s", sessions)
    collector.record_tool_call("bash", True, 1)
    fsync = os.fsync
    calls: list[int] = []

    def failing(fd: int) -> None:
        calls.append(os.fstat(fd).st_ino)
        if len(calls) <= failures:
            raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    for _ in range(failures):
        with pytest.raises(OSError, match="Input/output"):
            collector.flush()
    collector.flush()
    assert (sessions / "s" / "metrics.json").stat().st_ino in calls[failures:]
    assert collector.snapshot().tools[0].call_count == 1
    collector.stop()


def test_directory_in_place_of_a_file_is_named_by_its_path_and_takes_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for read in (files.read, lambda path: files.read_private(str(path), 10)):
        with pytest.raises(IsADirectoryError) as raised:
            read(str(tmp_path))
        assert raised.value.filename == str(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_replaced_file_has_the_time_of_the_clock_and_not_of_the_kernels_last_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the identities of two publications in one tick may be the same."""
    path = tmp_path / "file"
    for now in (1_795_388_400_123_456_789, 1_795_388_400_123_456_790):
        monkeypatch.setattr(files, "time_ns", lambda now=now: now)
        files.replace(str(path), b"data")
        assert path.stat().st_mtime_ns == now
