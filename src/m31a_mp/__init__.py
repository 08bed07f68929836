"""Metrics of an agent session, collected from many processes at once, right to the last record.

record_*()  ->  segment  ->  journal.ndjson  ->  sealed journal  ->  metrics.json
any process     its own      a batch, under      fold, by the        temp, fsync,
~1 us           mmap         journal.lock        owning process      rename, fsync dir

collector   Collector and Recorder: what users hold
writer      a process's staging: a free writer for every call, however calls interrupt each other
segment     the bytes in shared memory
drain       segments -> journal
journal     append, repair, seal, read
compactor   drain -> seal -> fold -> publish -> delete
fold        journals -> totals, each record once
store       metrics.json
"""

import logging

from m31a_mp.collector import Collector, Recorder, attach
from m31a_mp.compactor import Compaction, compact
from m31a_mp.errors import (
    DamagedMetricsError,
    InterruptedCallError,
    JournalLockedError,
    MetricsError,
    SessionOwnedError,
    UnsupportedVersionError,
)
from m31a_mp.model import LLMMetric, PhaseMetric, SessionMetrics, ToolMetric, Usage, WorkflowPhase
from m31a_mp.store import load, save
from m31a_mp.verify import Finding, verify

__all__ = [
    "Collector",
    "Compaction",
    "DamagedMetricsError",
    "Finding",
    "InterruptedCallError",
    "JournalLockedError",
    "LLMMetric",
    "MetricsError",
    "PhaseMetric",
    "Recorder",
    "SessionMetrics",
    "SessionOwnedError",
    "ToolMetric",
    "UnsupportedVersionError",
    "Usage",
    "WorkflowPhase",
    "attach",
    "compact",
    "load",
    "save",
    "verify",
]

logging.getLogger("m31a_mp").addHandler(logging.NullHandler())
