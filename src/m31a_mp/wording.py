"""Numbers, durations, costs and times for people: the words of all tables, and of reports."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from m31a_mp.system.log import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from m31a_mp.model import ModelMetric, PhaseMetric, StartupMetric, ToolMetric

FAILED = "failed"
"""The outcome of a phase that did not succeed."""

_LEAST_OF_FOUR_PLACES = 0.0001
# A smaller amount would have too many zeros for a column.
_LEAST_AMOUNT = 1e-9


def count(number: int, noun: str, plural: str = "") -> str:
    """Format a number of things: `1 record`, `2 records`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def part(number: int, whole: int) -> str:
    """Format a number as a percentage of another number."""
    return f"{100 * number / whole:.1f} %" if whole else "-"


def cost(amount: float, unknown: int = 0, interactions: int | None = None) -> str:
    """Format the cost of interactions.

    Args:
        amount: The sum of the known costs.
        unknown: The number of interactions without a known cost.
        interactions: The number of interactions; None: not considered.
    """
    if unknown and unknown == interactions:
        return "not known"
    if interactions == 0 and not amount:
        return "-"
    return f"at least {_amount(amount)}" if unknown else _amount(amount)


def _amount(amount: float) -> str:
    """Format an amount with four decimals, or with two significant digits if it is below 0.0001."""
    if amount >= _LEAST_OF_FOUR_PLACES or amount <= 0:
        return f"{amount:,.4f}"
    if amount < _LEAST_AMOUNT:
        return f"< {_LEAST_AMOUNT:.9f}"
    from decimal import Decimal  # takes a tenth of Python's start, for amounts that are rare  # noqa: PLC0415

    return f"{Decimal(f'{amount:.2g}'):f}"


def ago(time: datetime) -> str:
    """Format the time that has passed since."""
    return whole_seconds(max(datetime.now(UTC) - time, timedelta()) // timedelta(seconds=1))


def whole_seconds(seconds: int) -> str:
    """Format a duration in whole seconds."""
    return f"{seconds} s" if seconds < 60 else duration(seconds * 1000)  # noqa: PLR2004  # as in every clock


def duration(milliseconds: float | None) -> str:
    """Format a duration with at most two units; `-` if it is not known.

    The duration is truncated, never rounded up: 59,999 ms are not yet a minute. Only durations of less than
    ten milliseconds show a fraction.
    """
    if milliseconds is None:
        return "-"
    if milliseconds < 10:  # noqa: PLR2004
        return f"{int(10 * milliseconds) / 10:g} ms"
    whole = int(milliseconds)
    if whole < 1000:  # noqa: PLR2004  # as in every clock
        return f"{whole} ms"
    if whole < 60_000:  # noqa: PLR2004
        return f"{whole // 100 / 10:.1f} s"
    minutes, seconds = divmod(whole // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def start_of_program(start: StartupMetric) -> str:
    """Return a sentence on how long the program took to start."""
    parts = {"configuration": start.config_load_ms, "provider": start.provider_ms, "interface": start.tui_ms}
    named = ", ".join(f"{name} {duration(took)}" for name, took in parts.items())
    return f"the program took {duration(start.duration_ms)} to start: {named}"


def parts_of_tokens(model: ModelMetric) -> tuple[int, int, int, int, int]:
    """Return the tokens in disjoint parts: new input, cache read, cache write, output, reasoning."""
    return (
        model.prompt_tokens - model.cached_tokens - model.cache_write_tokens,
        model.cached_tokens,
        model.cache_write_tokens,
        model.completion_tokens - model.reasoning_tokens,
        model.reasoning_tokens,
    )


def has_ended(phase: PhaseMetric) -> bool:
    """Whether a phase's duration and outcome are known."""
    return phase.ended_at is not None or phase.success or phase.duration_ms > 0


def outcome(phase: PhaseMetric) -> str:
    """Return a phase's outcome in a word; `-` before the phase has ended."""
    if not has_ended(phase):
        return "-"
    return "ok" if phase.success else FAILED


def quantile(entry: ToolMetric | ModelMetric, q: float) -> str:
    """Format the duration that a fraction of the calls or interactions did not exceed.

    The duration is an estimate, and seconds are rounded to the nearest tenth, but not above the maximum.
    """
    found, most = entry.quantile(q), entry.max_duration_ms
    if found and 1000 <= found < 59_900:  # noqa: PLR2004
        found = round(found, -2) if most is None else min(round(found, -2), most)
    return duration(found)


def change(before: float, after: float) -> str:
    """Format how much a number grew, as a percentage; `new` if there was nothing before."""
    if before == after:
        return "-"
    return f"{100 * (after - before) / before:+.1f} %" if before else "new"


def title_of(name: str) -> str:
    """Format the name of a field as the title of a column."""
    return name.removesuffix("_ms").removesuffix("_id").replace("_", " ")


def value_of_field(name: str, value: Any) -> str:
    """Format the value of a field of a happening; `-` if it is empty."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_ms"):
        return duration(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, tuple):
        value = ", ".join(value)
    return shown(str(value)) or "-"
