"""Forks, signal handlers and their exceptions: what they do to this library, and what it does about them.

**A fork copies everything and shares open files.** A child has the locks of its parent (flock(2) belongs to
the open file), its mapped segments, and the state of calls that other threads were in the middle of. A child
that kept a lock would hold it long after its parent died; one that stored into the parent's segment would
overwrite the parent's records. So each module that keeps such things registers one function with
`after_in_child`, which lets go of them. They run in the order of `STAGES`: open files first, for others wait
for the locks on them; then what this process is; last what records and merges with all that.

**C code may fork without running the hooks of Python.** `mark` is a page that the kernel empties in every
forked child. A record reads it first, which costs a fiftieth of a record, and so do locks and operations.

**A thread may be in the middle of opening a file when another thread forks.** The child has that file and
does not know of it. Whoever locks a file therefore asks before it opens the file how many forks have `ended`,
and takes the lock only if no more than those have `begun`.

**A signal handler runs between any two lines of Python, and may raise, fork, or record.** It does not run
inside of C code. So:

- The hooks that count forks are C functions: nothing can come into them. A count that was missed would keep
  this process from its locks for ever.
- The hooks of the child may be cut short, for Python swallows an exception there and goes on. Each can be
  repeated. `mark` says that the child has come through when all of them have run, and until then the next
  record, lock or operation runs them again.
- A lock that must be given back is a `with` of C code: a `FileIO` or an `RLock`, around a callback. A
  `finally` or a context manager in Python can be interrupted before its first line.
- A handler that forks in the middle of an operation, and returns in the child, would do the rest of the
  operation twice. The operation knows its `generation`; in the child its next step raises `ForkedError`.
- A handler that interrupted a call that has its turn cannot wait for it: it is refused by
  `InterruptedCallError`, or what it wants is done when the turn is over (`turn.py`).

What does not work: blocking signals around each call (a system call for each, and only for one thread), and
locks in memory around a fork (a thread that holds one would be gone in the child).
"""

from __future__ import annotations

import mmap
import os
from _collections import deque  # type: ignore[import-not-found]  # without what `collections` imports
from _functools import partial  # type: ignore[import-not-found]
from itertools import count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STAGES = ("files", "locks", "process", "segments")
"""The order in which a forked child lets go of what is its parent's."""

generation = 0
"""How many forks lie between this process and the first one."""

_MADV_WIPEONFORK = 18  # linux/mman.h, since Linux 4.14; Python has no name for it
_ATTEMPTS = 10

_in_child: dict[str, list[Callable[[], object]]] = {stage: [] for stage in STAGES}

# How many forks this process has begun and ended: the one item of a deque, counted by a C function.
_begun: list[int] = deque([0], maxlen=1)
_ended: list[int] = deque([0], maxlen=1)
_begin = map(_begun.append, count(1)).__next__
_end = map(_ended.append, count(1)).__next__


def begun() -> int:
    """How many forks this process has begun."""
    return _begun[0]


def ended() -> int:
    """How many forks this process has ended; one that is under way may take a copy of any open file."""
    return _ended[0]


def after_in_child(stage: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Have a function called in every forked child, before anything else of the child runs.

    Args:
        stage: One of `STAGES`.

    Returns:
        A decorator. The function may be called more than once for a fork.
    """

    def register(hook: Callable[[], object]) -> Callable[[], object]:
        _in_child[stage].append(hook)
        return hook

    return register


def came_through() -> None:
    """In a forked child: let go of what is the parent's."""
    global generation  # noqa: PLW0603
    if not mark[1]:  # once for each fork: no call is made between these lines, so that no handler runs
        generation += 1
        mark[1] = 1
    while _ended[0] != _begun[0]:  # those that other threads had begun are the parent's
        _end()
    interrupt = None
    for stage in STAGES:
        for hook in _in_child[stage]:
            interrupt = _insist(hook) or interrupt
    mark[0] = 1  # last: until then the next record runs all of this again
    if interrupt:
        raise interrupt


def settle() -> None:
    """Let go of what is the parent's, if this is a child in which that has not been done."""
    if not mark[0]:
        came_through()


def _insist(hook: Callable[[], object]) -> BaseException | None:
    """Run a hook to its end, whatever exceptions of signal handlers come into it; returns the last one."""
    interrupt: BaseException | None = None
    for _ in range(_ATTEMPTS):
        if mark[0]:
            return interrupt  # a handler recorded meanwhile, and has let go of everything
        try:
            hook()
        except BaseException as error:
            interrupt = error
        else:
            return interrupt
    return interrupt


def _make_mark() -> mmap.mmap | bytearray:
    """Two bytes that are 1, and 0 in a forked child; where the kernel cannot do that, Python's hook does."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_MADV_WIPEONFORK)
    except OSError:
        return bytearray(b"\1\1")
    page[:2] = b"\1\1"
    return page


mark = _make_mark()

os.register_at_fork(
    before=_begin,
    after_in_parent=_end,
    after_in_child=partial(mark.__setitem__, slice(0, 2), b"\0\0"),
)
os.register_at_fork(after_in_child=came_through)
