"""Names as they stand in a line, and numbers of NumPy's kind."""

from __future__ import annotations

import decimal
import importlib.util
import numbers
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import orjson
import pytest
from hypothesis import given

from m31a_mp import Collector, LLMMetric, PlanOutcome, SessionMetrics, ToolMetric, Usage
from m31a_mp.kinds import checks
from m31a_mp.kinds.checks import EncodedNames
from strategies import names


@given(names)
def test_any_name_makes_a_part_of_one_line_of_json(name: str) -> None:
    member = EncodedNames("phase")[name]
    assert "\n" not in member
    assert "\0" not in member
    assert orjson.loads(f'{{"a":1{member},"b":2}}') == {"a": 1, "phase": name, "b": 2}


def test_names_take_no_more_memory_than_for_some_thousands() -> None:
    kept = EncodedNames("phase")
    for i in range(10_000):
        assert kept[str(i)] == f',"phase":"{i}"'
    assert len(kept) < 5000


def test_name_that_is_refused_is_not_kept() -> None:
    kept = EncodedNames("phase")
    with pytest.raises(ValueError, match="empty"):
        kept[""]
    assert kept == {}


class _Fake:
    """A number that is none of Python's own, nor of their subclasses, as those of NumPy."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __bool__(self) -> bool:
        return bool(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __format__(self, spec: str) -> str:
        return f"np({self.value})"

    def __repr__(self) -> str:
        return f"np({self.value})"


class _Integer(_Fake):
    def __index__(self) -> int:
        return int(self.value)

    __int__ = __index__


class _Float(_Fake):
    pass


class _Span(_Fake):
    """As `numpy.timedelta64`: registered as an integer, and has no `__index__`."""

    def __int__(self) -> int:
        return int(self.value)


numbers.Integral.register(_Integer)
numbers.Integral.register(_Span)
numbers.Real.register(_Float)
_Bool = type("bool", (_Fake,), {"__module__": "numpy", "__qualname__": "bool"})
_OldBool = type("bool_", (_Fake,), {"__module__": "numpy", "__qualname__": "bool_"})


class Kinds:
    """The types of a NumPy, the real one or not."""

    def __init__(self, integers: list[Any], floats: list[Any], bools: list[Any], span: Any) -> None:
        self.integers, self.floats, self.bools, self.span = integers, floats, bools, span


NUMPYS = [Kinds([_Integer], [_Float], [_Bool, _OldBool], _Span)]
if importlib.util.find_spec("numpy"):
    np: Any = importlib.import_module("numpy")
    ints = [np.int8, np.uint8, np.int32, np.int64, np.uint64, np.intp]
    NUMPYS.append(
        Kinds(ints, [np.float16, np.float32, np.float64, np.longdouble], [np.bool_], np.timedelta64)
    )


@pytest.mark.parametrize("kinds", NUMPYS)
class TestNumPy:
    def test_numbers_count_as_what_they_are(self, sessions: Path, kinds: Kinds) -> None:
        with Collector("s", sessions) as collector:
            for integer in kinds.integers:
                for boolean in kinds.bools:
                    collector.record_tool_call("bash", boolean(1), integer(5))
                    collector.record_tool_call("bash", boolean(0), integer(7))
                    collector.record_phase_duration("plan", integer(9), boolean(1))
                usage = Usage(integer(1), integer(2), integer(4))
                for number in (*kinds.floats, *kinds.integers):
                    collector.record_llm_interaction("plan", usage, number(2))
                with collector.tool_call("block") as call:
                    call.success = kinds.bools[0](0)
            metrics = collector.snapshot()
        integers, bools, floats = len(kinds.integers), len(kinds.bools), len(kinds.floats)
        bash, block = metrics.tools
        assert (bash.success_count, bash.fail_count) == (integers * bools,) * 2
        assert bash.total_duration_ms == 12 * integers * bools
        assert (block.success_count, block.fail_count) == (0, integers)
        (llm,) = metrics.llms
        assert (llm.cost, llm.interaction_count) == (2.0 * llm.prompt_tokens, integers * (floats + integers))
        assert llm.total_tokens == 2 * llm.completion_tokens == 4 * llm.prompt_tokens
        assert (metrics.phases[0].duration_ms, metrics.phases[0].success) == (9, True)
        assert metrics.rejected == 0

    @pytest.mark.usefixtures("segments_at_once")
    def test_lines_hold_plain_numbers(self, sessions: Path, kinds: Kinds) -> None:
        collector = Collector("s", sessions)
        collector.record_tool_call("bash", kinds.bools[0](1), kinds.integers[0](5))
        collector.record_llm_interaction(
            "plan", Usage(*(kinds.integers[0](n) for n in (1, 2, 3))), kinds.floats[0](2)
        )
        (segment,) = (sessions / "s" / "segments").iterdir()
        lines = segment.read_bytes()[256:].rstrip(b"\0").splitlines()
        fields = [
            {k: v for k, v in orjson.loads(line).items() if k not in ("event", "time")} for line in lines
        ]
        assert fields == [
            {"name": "bash", "success": True, "duration_ms": 5},
            {"phase": "plan", "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cost": 2.0},
        ]
        collector.stop()

    def test_what_is_of_another_kind_is_refused_by_its_full_name(self, kinds: Kinds) -> None:
        truth = kinds.bools[0](1)
        for wrong in (truth, kinds.floats[0](1), kinds.span(5)):
            with pytest.raises(TypeError, match=f"an int, not {type(wrong).__module__}\\.") as error:
                checks.check_int("duration_ms", wrong)
            assert ("round it" in str(error.value)) == (type(wrong) is kinds.floats[0])
        for wrong in (truth, kinds.span(5)):
            with pytest.raises(TypeError, match=f"a float, not {checks.kind(wrong)}$"):
                checks.check_cost("cost", wrong)
        for wrong in (kinds.integers[0](1), kinds.floats[0](1), kinds.span(1)):
            with pytest.raises(TypeError, match=f"a bool, not {checks.kind(wrong)}$"):
                checks.check_bool("success", wrong)

    def test_numbers_out_of_range_are_refused(self, kinds: Kinds) -> None:
        with pytest.raises(ValueError, match="is negative"):
            checks.check_int("duration_ms", kinds.integers[0](-1))
        with pytest.raises(ValueError, match="has 64 bits"):
            checks.check_int("duration_ms", kinds.integers[4 % len(kinds.integers)](2**63))
        for value, why in ((-1, "negative"), (float("inf"), "finite"), (float("nan"), "finite")):
            with pytest.raises(ValueError, match=why):
                checks.check_cost("cost", kinds.floats[0](value))

    def test_metrics_of_such_numbers_are_plain_json(self, kinds: Kinds) -> None:
        integer = kinds.integers[0]
        metrics = SessionMetrics(
            "s",
            tools=[ToolMetric("a", integer(1), integer(1))],
            llms=[LLMMetric("p", cost=kinds.floats[0](2))],
        )
        document = orjson.loads(orjson.dumps(metrics.to_json()))
        assert (document["tools"][0]["call_count"], document["llms"][0]["cost"]) == (1, 2.0)

    def test_usage_of_such_counts_is_taken(self, kinds: Kinds) -> None:
        count = kinds.integers[0]
        response = {"usage": {"prompt_tokens": count(1), "completion_tokens": count(2)}}
        assert Usage.from_response(response) == Usage(1, 2, 3)


@pytest.mark.parametrize("wrong", [MagicMock(), decimal.Decimal(1), 1j, "1", None])
def test_what_only_converts_to_a_number_is_none(wrong: object) -> None:
    for check in (checks.check_int, checks.check_cost, checks.check_bool):
        with pytest.raises(TypeError) as error:
            check("field", wrong)
        assert str(error.value).endswith(f", not {checks.kind(wrong)}")


def test_type_is_named_with_its_module_unless_it_is_a_builtin() -> None:
    assert [checks.kind(value) for value in (1, None, decimal.Decimal(1))] == [
        "int",
        "NoneType",
        "decimal.Decimal",
    ]


class Liar(str):
    """A text that shows itself as another one."""

    __slots__ = ()

    def encode(self, *_: str) -> bytes:
        return b"x"

    def __len__(self) -> int:
        return 1

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        raise RuntimeError("asked for the text")


class WrongInt(int):
    def __int__(self) -> int:
        raise RuntimeError("asked for the number")


class WrongFloat(float):
    def __float__(self) -> float:
        raise RuntimeError("asked for the number")


def test_subclasses_are_taken_for_what_they_are(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        collector.record_tool_call(Liar("bash"), True, WrongInt(5))
        collector.record_llm_interaction(Liar("plan"), Usage(WrongInt(1), 2, 3), WrongFloat(0.5))
        for wrong in ("", "x" * 5000):
            with pytest.raises(ValueError, match="task_id"):
                collector.record_plan_outcome(PlanOutcome(Liar(wrong), "edit", "", True, 1))
        metrics = collector.snapshot()
    assert [(tool.name, tool.total_duration_ms) for tool in metrics.tools] == [("bash", 5)]
    assert [(llm.phase, llm.prompt_tokens, llm.cost) for llm in metrics.llms] == [("plan", 1, 0.5)]
    assert metrics.rejected == 0
