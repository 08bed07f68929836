"""Metrics of an agent session, collected from many processes at once, right to the last record.

record_*()  ->  segment  ->  journal.ndjson  ->  sealed journal  ->  metrics.json
any process     its own      a batch, under      fold, by the        temp, fsync,
~1 us           mmap         journal.lock        owning process      rename, fsync dir

recorder     Recorder: what every process records with
collector    Collector: the owner, who records and merges
kinds/       every kind of record, declared once
segments/    any process: its records in shared memory, and from there to the journal
journal/     one batch at a time, under the lock; what stands in a journal
metrics/     the owner: seal -> fold -> publish -> delete
inspection/  look and change nothing: snapshot, status, verify
session/     the directory, and the owner's lease
system/      durable steps, locks, forks, processes
cli/         the command line
"""

__version__ = "0.1.0"  # the package's too: its build reads this line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from m31a_mp.collector import Collector
    from m31a_mp.errors import (
        DamagedMetricsError,
        InterruptedCallError,
        JournalLockedError,
        MetricsError,
        SessionOwnedError,
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
        StartupMetric,
        Timeline,
        ToolMetric,
        WorkflowPhase,
    )
    from m31a_mp.plan import PlanOutcome
    from m31a_mp.prompt import hash_prompt
    from m31a_mp.recorder import Recorder, attach
    from m31a_mp.timing import Measured, Stopwatch
    from m31a_mp.usage import Usage

__all__ = [
    "CancellationMetric",
    "Collector",
    "Compaction",
    "CompletionMetric",
    "DamagedMetricsError",
    "EditStrategyMetric",
    "Finding",
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
    "StartupMetric",
    "Stopwatch",
    "Timeline",
    "ToolMetric",
    "UnsupportedVersionError",
    "Usage",
    "WorkflowPhase",
    "__version__",
    "attach",
    "compact",
    "hash_prompt",
    "load",
    "merge",
    "save",
    "verify",
]

# The modules of the public names. Each is imported when a name of it is first asked for (PEP 562), so that a
# program pays for what it uses. What a record needs comes with `Recorder`, all of it: see writer.py.
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
        "StartupMetric",
        "Timeline",
        "ToolMetric",
        "WorkflowPhase",
    ),
    "plan": ("PlanOutcome",),
    "prompt": ("hash_prompt",),
    "recorder": ("Recorder", "attach"),
    "metrics.file": ("load", "save"),
    "metrics.merge": ("merge",),
    "timing": ("Measured", "Stopwatch"),
    "usage": ("Usage",),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "errors")
    module = __import__(f"{__name__}.{home}", fromlist=[name])
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
