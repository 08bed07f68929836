"""A session of a day's work for the tests of reports: what an agent did, as lines of a journal."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

START = 1_795_424_400
"""The time of the first record, in seconds since the epoch: 2026-11-23 09:00:00 UTC."""

_TOOLS = {  # the median in ms, how much it spreads, how often of 100 calls, how many of 100 fail
    "read_file": (9, 0.8, 34, 2),
    "grep": (35, 0.9, 22, 1),
    "edit_file": (14, 0.5, 16, 7),
    "bash": (900, 1.4, 14, 12),
    "pytest": (21_000, 0.9, 6, 31),
    "web_search": (1_700, 0.6, 4, 9),
    "git_status": (22, 0.3, 3, 0),
    "language_server.references": (310, 0.7, 1, 0),
}
_ERRORS = {"bash": ("exit 1", "exit 2", "timeout"), "pytest": ("exit 1",), "edit_file": ("NoMatchError",)}
_MODELS = {"claude-sonnet-4-5": 0.000004, "claude-haiku-4-5": 0.000001, "local/qwen3-coder": None}
_PHASES = (("discuss", 0.1, True), ("plan", 0.22, True), ("execute", 0.8, True), ("verify", 1.0, False))


def working_day(seed: int = 1, *, minutes: int = 52, calls: int = 900) -> Iterator[dict[str, Any]]:
    """Yield the records of a session."""
    chance = random.Random(seed)
    yield record(0, "startup", duration_ms=930, config_load_ms=42, provider_ms=310, tui_ms=64)
    begun, seconds = 0.0, minutes * 60
    for phase, share, success in _PHASES:
        end = share * seconds
        yield record(begun, "phase_transition", phase=phase)
        for _ in range(int(calls * (end - begun) / seconds)):
            at = chance.triangular(begun, end, begun + 0.35 * (end - begun))
            yield _call(chance, at)
            if chance.random() < 0.3:
                yield _interaction(chance, at, phase)
        yield record(
            end, "phase_duration", phase=phase, duration_ms=int(1000 * (end - begun)), success=success
        )
        yield record(end, "completion", phase=phase, success=success, timeout=False)
        begun = end
    for n in range(3):
        yield record(0.85 * seconds + n, "heal_trigger", phase="verify")
        yield record(0.86 * seconds + n, "heal_outcome", phase="verify", success=n != 2)
        yield record(0.87 * seconds + n, "heal_duration", phase="verify", duration_ms=41_000 + n)
    yield record(0.9 * seconds, "bisect_trigger", phase="verify")
    yield record(0.95 * seconds, "bisect_outcome", phase="verify", success=True)
    for strategy, times in (("search_replace", 61), ("whole_file", 9), ("unified_diff", 4)):
        for n in range(times):
            yield record(seconds * n / times, "edit_strategy", strategy=strategy)
    for n in range(9):
        failed = {"error_type": "tests failed"} if n % 4 == 3 else {}
        yield record(
            (0.25 + 0.06 * n) * seconds,
            "plan_outcome",
            task_id=f"T-{n + 1}",
            action="edit" if n % 3 else "create",
            description=f"Move the reader of {'headers' if n % 2 else 'batches'} into a module of its own",
            success=not failed,
            duration_ms=60_000 + 13_000 * n,
            heals_used=int(n % 4 == 3),
            tool_calls=20 + 7 * n,
            files=["src/reader.py", "tests/test_reader.py"],
            **failed,
        )
    yield record(0.97 * seconds, "cancellation", phase="verify", reason="the user stopped it")


def record(at: float, event: str, **fields: Any) -> dict[str, Any]:
    """Return a record so many seconds after `START`."""
    return {"event": event, "time": int((START + at) * 1e9), **fields}


def _call(chance: random.Random, at: float) -> dict[str, Any]:
    [name] = chance.choices(list(_TOOLS), [weight for _, _, weight, _ in _TOOLS.values()])
    median, spread, _, failing = _TOOLS[name]
    success = chance.randrange(100) >= failing
    error = {} if success or name not in _ERRORS else {"error": chance.choice(_ERRORS[name])}
    took = int(median * chance.lognormvariate(0, spread))
    return record(at, "tool_call", name=name, success=success, duration_ms=took, **error)


def _interaction(chance: random.Random, at: float, phase: str) -> dict[str, Any]:
    [model] = chance.choices(list(_MODELS), [7, 3, 1])
    price = _MODELS[model]
    prompt, completion = chance.randrange(2_000, 60_000), chance.randrange(50, 2_500)
    return record(
        at,
        "llm_interaction",
        phase=phase,
        model=model,
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        cached_tokens=int(prompt * 0.7),
        reasoning_tokens=completion // 3,
        cost=None if price is None else round(price * (prompt + 5 * completion), 6),
        duration_ms=int(2_500 * chance.lognormvariate(0, 0.6)),
    )


def write(directory: Path, records: Iterator[dict[str, Any]]) -> Path:
    """Write records as the journal of a session that nobody owns."""
    directory.mkdir(parents=True)
    lines = [orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in records]
    (directory / "journal.ndjson").write_bytes(b"".join(lines))
    return directory
