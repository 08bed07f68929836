"""Imports that come late, because most processes never need them.

A fork in the middle of an import by another thread would leave the child waiting for that thread, as soon as
it imports the same. So a fork waits until nobody is in the middle of one of these.

What a record may need is not among them: it is imported before the first record, and is little.
"""

from __future__ import annotations

import os
from _thread import RLock

imports = RLock()
"""To be held around each late import."""

# An import takes a tenth of it. One that takes longer may be waiting for what the forking thread holds: the
# lock of `logging`, perhaps, which is taken before a fork as well.
_PATIENCE_SECONDS = 1.0


def _before_fork() -> None:
    imports.acquire(timeout=_PATIENCE_SECONDS)


def _after_fork_in_parent() -> None:
    try:
        imports.release()
    except RuntimeError:
        pass  # it could not be had


def _after_fork_in_child() -> None:
    global imports  # noqa: PLW0603
    imports = RLock()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
