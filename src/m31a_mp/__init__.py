"""Metrics of an agent session, collected from many processes at once, exact to the last record.

record_*()  ->  segment  ->  journal.ndjson  ->  sealed journal  ->  metrics.json
any process     its own      a batch, under      fold, by the        temp, fsync,
~1 us           mmap         journal.lock        owning process      rename, fsync dir

recorder     Recorder: records, in every process
collector    Collector: the owner's recorder, which also merges
kinds/       every kind of record, declared once
segments/    every process: stage records in shared memory, drain them to the journal
journal/     the format of journals: append a batch under the lock, read items
metrics/     the owner: seal -> fold -> publish -> delete
inspection/  read-only views: snapshot, status, verify
sharing/     past one machine: share the state of a site, gather those of all
session/     the directory, and the owner's lease
system/      durable steps, locks, forks, processes
exports/     the metrics of a session for other programs, and as a page
cli/         the command line

A writer is one numbered stream of records in a process, used by one call at a time.
A segment is a mapped file that holds the records of one writer until they are drained.
A journal is the file that collects the records of all writers.
A batch is a run of consecutive records of one writer in a journal.
A drain moves pending records from segments to the journal, under `journal.lock`.
A spill is a drain of full segments during a record, done only if the lock is free.
To seal is to rename the journal to a number, so that nothing is appended to it any more.
To fold is to add the records of sealed journals to the totals, each record once.
A checkpoint is the part of `metrics.json` that states which records are counted.
To publish is to replace `metrics.json` by the new totals and checkpoint, durably.
An owner is the process that holds the lease of a session and merges its records.
A lease is the exclusive right to merge, held by a lock on `owner.lock`.
A site is a session's directory on one machine, as other machines know it.
A state is the `metrics.json` of a site, whole, with a number that only grows.
A store is the place where sites share their states: a directory, or a Redis or Valkey server.
"""

__version__ = "0.1.0"  # the build of the package reads this line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from m31a_mp.collector import Collector
    from m31a_mp.errors import (
        DamagedMetricsError,
        ExportError,
        GatheredSessionError,
        InterruptedCallError,
        JournalLockedError,
        MetricsError,
        SessionOwnedError,
        StoreError,
        UnsupportedVersionError,
    )
    from m31a_mp.inspection.verify import Finding, verify
    from m31a_mp.metrics.compactor import Compaction, compact
    from m31a_mp.metrics.file import load, save
    from m31a_mp.metrics.merge import merge
    from m31a_mp.model import (
        CancellationMetric,
        CompletionMetric,
        EditStrategyMetric,
        LLMMetric,
        ModelMetric,
        PhaseMetric,
        RunningCall,
        SessionMetrics,
        SessionTotals,
        SiteMetric,
        StartupMetric,
        Timeline,
        ToolMetric,
        WorkflowPhase,
    )
    from m31a_mp.plan import PlanOutcome
    from m31a_mp.prompt import hash_prompt
    from m31a_mp.recorder import Recorder, attach
    from m31a_mp.sharing.gather import gather
    from m31a_mp.timing import Measured, Stopwatch
    from m31a_mp.usage import Usage

__all__ = [
    "CancellationMetric",
    "Collector",
    "Compaction",
    "CompletionMetric",
    "DamagedMetricsError",
    "EditStrategyMetric",
    "ExportError",
    "Finding",
    "GatheredSessionError",
    "InterruptedCallError",
    "JournalLockedError",
    "LLMMetric",
    "Measured",
    "MetricsError",
    "ModelMetric",
    "PhaseMetric",
    "PlanOutcome",
    "Recorder",
    "RunningCall",
    "SessionMetrics",
    "SessionOwnedError",
    "SessionTotals",
    "SiteMetric",
    "StartupMetric",
    "Stopwatch",
    "StoreError",
    "Timeline",
    "ToolMetric",
    "UnsupportedVersionError",
    "Usage",
    "WorkflowPhase",
    "__version__",
    "attach",
    "compact",
    "gather",
    "hash_prompt",
    "load",
    "merge",
    "save",
    "verify",
]

# The modules of the public names. Each is imported at the first access to one of its names (PEP 562), so that
# a program imports only what it uses. `Recorder` imports all that recording needs: see staging.py.
_HOMES = {
    "inspection.verify": ("Finding", "verify"),
    "collector": ("Collector",),
    "metrics.compactor": ("Compaction", "compact"),
    "model": (
        "CancellationMetric",
        "CompletionMetric",
        "EditStrategyMetric",
        "LLMMetric",
        "ModelMetric",
        "PhaseMetric",
        "RunningCall",
        "SessionMetrics",
        "SessionTotals",
        "SiteMetric",
        "StartupMetric",
        "Timeline",
        "ToolMetric",
        "WorkflowPhase",
    ),
    "plan": ("PlanOutcome",),
    "prompt": ("hash_prompt",),
    "recorder": ("Recorder", "attach"),
    "sharing.gather": ("gather",),
    "metrics.file": ("load", "save"),
    "metrics.merge": ("merge",),
    "timing": ("Measured", "Stopwatch"),
    "usage": ("Usage",),
}
# The others import orjson.
_WITHOUT_ORJSON = {"collector", "errors", "plan", "prompt", "recorder", "timing", "usage"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "errors")
    if home not in _WITHOUT_ORJSON:
        __import__(f"{__name__}.kinds.json")  # first: it imports orjson safely
    module = __import__(f"{__name__}.{home}", fromlist=[name])
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
