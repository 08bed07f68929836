"""Forks while coverage is measured. To be imported before the library, whose own hooks are measured, too."""

import os
import threading

from coverage import Coverage


def _renew() -> None:
    """A fork while another thread is in that lock leaves the child with one that nobody gives back."""
    collector = getattr(Coverage.current(), "_collector", None)
    if collector:
        collector.data_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew)
