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

os.register_at_fork(before=imports.acquire, after_in_parent=imports.release, after_in_child=imports.release)
