"""Usage in the answers of OpenAI and Anthropic, in the shape in which they come."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from m31a_mp import Collector, Usage
from strategies import INT64_MAX

OPENAI_CHAT = """
{
  "id": "chatcmpl-BfQ2nTcLrN5gRkqjHbUTnQzX0kWmV", "object": "chat.completion", "created": 1749223361,
  "model": "o4-mini-2025-04-16",
  "choices": [{
    "index": 0,
    "message": {"role": "assistant", "content": "Yes.", "refusal": null, "annotations": []},
    "logprobs": null, "finish_reason": "stop"
  }],
  "usage": {
    "prompt_tokens": 2006, "completion_tokens": 300, "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
    "completion_tokens_details": {
      "reasoning_tokens": 256, "audio_tokens": 0,
      "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0
    }
  },
  "service_tier": "default", "system_fingerprint": null
}
"""

OPENAI_CHUNK = """
{
  "id": "chatcmpl-BfQ7x", "object": "chat.completion.chunk", "created": 1749223682,
  "model": "gpt-4o-mini-2024-07-18", "service_tier": "default", "system_fingerprint": "fp_62a23a81ef",
  "choices": [{
    "index": 0, "delta": {"role": "assistant", "content": "", "refusal": null},
    "logprobs": null, "finish_reason": null
  }],
  "usage": null
}
"""

OPENAI_LAST_CHUNK = """
{
  "id": "chatcmpl-BfQ7x", "object": "chat.completion.chunk", "created": 1749223682,
  "model": "gpt-4o-mini-2024-07-18", "service_tier": "default", "system_fingerprint": "fp_62a23a81ef",
  "choices": [],
  "usage": {
    "prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
      "reasoning_tokens": 0, "audio_tokens": 0,
      "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0
    }
  }
}
"""

OPENAI_RESPONSE = """
{
  "id": "resp_684a1e8f0c5481a0b1c7d0b3a29e9fd2", "object": "response", "created_at": 1749687951,
  "status": "completed", "background": false, "error": null, "incomplete_details": null,
  "instructions": null, "max_output_tokens": null, "model": "gpt-5-2025-08-07",
  "output": [
    {"id": "rs_1", "type": "reasoning", "summary": []},
    {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant",
     "content": [{"type": "output_text", "annotations": [], "logprobs": [], "text": "Rust is..."}]}
  ],
  "parallel_tool_calls": true, "previous_response_id": null,
  "reasoning": {"effort": "medium", "summary": null}, "service_tier": "default", "store": true,
  "temperature": 1.0, "text": {"format": {"type": "text"}, "verbosity": "medium"}, "tool_choice": "auto",
  "tools": [], "top_p": 1.0, "truncation": "disabled",
  "usage": {
    "input_tokens": 1612, "input_tokens_details": {"cached_tokens": 1536},
    "output_tokens": 940, "output_tokens_details": {"reasoning_tokens": 832},
    "total_tokens": 2552
  },
  "user": null, "metadata": {}
}
"""

OPENAI_EMBEDDINGS = """
{
  "object": "list",
  "data": [{"object": "embedding", "index": 0, "embedding": [-0.0069, -0.0053]}],
  "model": "text-embedding-3-small",
  "usage": {"prompt_tokens": 5, "total_tokens": 5}
}
"""

ANTHROPIC_MESSAGE = """
{
  "id": "msg_01XFDUDYJgAACzvnptvVoYEL", "type": "message", "role": "assistant",
  "model": "claude-sonnet-4-5-20250929",
  "content": [{"type": "text", "text": "Hi! My name is Claude."}],
  "stop_reason": "end_turn", "stop_sequence": null,
  "usage": {
    "input_tokens": 21, "cache_creation_input_tokens": 188, "cache_read_input_tokens": 1086,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 88},
    "output_tokens": 393, "output_tokens_details": {"thinking_tokens": 300},
    "server_tool_use": {"web_search_requests": 1}, "service_tier": "standard"
  }
}
"""

ANTHROPIC_NULLS = """
{
  "id": "msg_013Zva2CMHLNnXjNJJKqJ2EF", "type": "message", "role": "assistant",
  "model": "claude-3-haiku-20240307", "content": [], "stop_reason": "max_tokens", "stop_sequence": null,
  "usage": {
    "input_tokens": 2095, "output_tokens": 503,
    "cache_creation": null, "cache_creation_input_tokens": null, "cache_read_input_tokens": null,
    "server_tool_use": null, "service_tier": null
  }
}
"""

# LiteLLM shows answers of Anthropic as chat completions: the prompt is whole, and the parts stand there, too.
GATEWAY_CHAT = """
{
  "id": "chatcmpl-8f", "object": "chat.completion", "created": 1749223361, "model": "claude-sonnet-4-5",
  "choices": [],
  "usage": {
    "prompt_tokens": 1295, "completion_tokens": 393, "total_tokens": 1688,
    "prompt_tokens_details": {"cached_tokens": 1086},
    "cache_creation_input_tokens": 188, "cache_read_input_tokens": 1086
  }
}
"""

ANSWERS = {
    "chat completion": (OPENAI_CHAT, Usage(2006, 300, 2306, cached_tokens=1920, reasoning_tokens=256)),
    "last chunk": (OPENAI_LAST_CHUNK, Usage(19, 10, 29)),
    "response": (OPENAI_RESPONSE, Usage(1612, 940, 2552, cached_tokens=1536, reasoning_tokens=832)),
    "embeddings": (OPENAI_EMBEDDINGS, Usage(5, 0, 5)),
    "message": (
        ANTHROPIC_MESSAGE,
        Usage(21 + 188 + 1086, 393, 1688, cached_tokens=1086, cache_write_tokens=188),
    ),
    "message without cache": (ANTHROPIC_NULLS, Usage(2095, 503, 2598)),
    "chat completion of a gateway": (
        GATEWAY_CHAT,
        Usage(1295, 393, 1688, cached_tokens=1086, cache_write_tokens=188),
    ),
}


def as_object(text: str) -> Any:
    """As the SDKs have it: attributes all the way down."""
    return json.loads(text, object_hook=lambda members: SimpleNamespace(**members))


@pytest.mark.parametrize(("text", "usage"), ANSWERS.values(), ids=list(ANSWERS))
class TestAnswer:
    def test_dict(self, text: str, usage: Usage) -> None:
        assert Usage.from_response(json.loads(text)) == usage

    def test_object(self, text: str, usage: Usage) -> None:
        assert Usage.from_response(as_object(text)) == usage

    def test_dict_with_an_object_and_object_with_a_dict(self, text: str, usage: Usage) -> None:
        assert Usage.from_response({"usage": as_object(text).usage}) == usage
        assert Usage.from_response(SimpleNamespace(usage=json.loads(text)["usage"])) == usage

    def test_usage_itself(self, text: str, usage: Usage) -> None:
        assert Usage.from_response(json.loads(text)["usage"]) == usage
        assert Usage.from_response(as_object(text).usage) == usage

    def test_answer_is_left_as_it_is(self, text: str, usage: Usage) -> None:
        answer = json.loads(text)
        assert Usage.from_response(answer) == usage
        assert answer == json.loads(text)


ANTHROPIC_STREAM = [
    {
        "type": "message_start",
        "message": {
            "id": "msg_1", "type": "message", "role": "assistant", "content": [], "stop_reason": None,
            "usage": {"input_tokens": 25, "cache_read_input_tokens": 100, "output_tokens": 1},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {
            "input_tokens": 25, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 100,
            "output_tokens": 15,
        },
    },
    {"type": "message_stop"},
]  # fmt: skip

RESPONSE_STREAM = [
    {"type": "response.created", "response": {"id": "resp_1", "object": "response", "usage": None}},
    {"type": "response.in_progress", "response": {"id": "resp_1", "object": "response", "usage": None}},
    {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "delta": "Hi"},
    {"type": "response.completed", "response": json.loads(OPENAI_RESPONSE)},
]

STREAMS = {
    "chat completions": ([json.loads(OPENAI_CHUNK), json.loads(OPENAI_LAST_CHUNK)], Usage(19, 10, 29)),
    "responses": (RESPONSE_STREAM, Usage(1612, 940, 2552, cached_tokens=1536, reasoning_tokens=832)),
    "messages": (ANTHROPIC_STREAM, Usage(125, 15, 140, cached_tokens=100)),
}


@pytest.mark.parametrize(("events", "usage"), STREAMS.values(), ids=list(STREAMS))
def test_of_the_events_of_a_stream_one_has_the_usage(events: list[Any], usage: Usage) -> None:
    for answers in (events, [as_object(json.dumps(event)) for event in events]):
        found = [Usage.from_response(answer) for answer in answers]
        assert [one for one in found if one] == [usage]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"usage": None},
        json.loads(OPENAI_CHUNK),
        as_object(OPENAI_CHUNK),
        {"error": {"message": "Rate limit reached", "type": "requests"}},
        SimpleNamespace(usage=None),
        SimpleNamespace(object="chat.completion.chunk", choices=[]),
    ],
)
def test_answer_without_usage_records_nothing(answer: Any, sessions: Path) -> None:
    assert Usage.from_response(answer) is None
    with Collector("s", sessions) as collector:
        collector.record_llm_interaction("plan", Usage.from_response(answer), 1.0)
        assert collector.snapshot().llms == []


def test_answers_add_up_in_the_session(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        for text, _ in ANSWERS.values():
            collector.record_llm_interaction("plan", Usage.from_response(json.loads(text)), 0.5)
        metric = collector.snapshot().llms[0]
    usages = [usage for _, usage in ANSWERS.values()]
    assert metric.prompt_tokens == sum(usage.prompt_tokens for usage in usages)
    assert metric.completion_tokens == sum(usage.completion_tokens for usage in usages)
    assert metric.total_tokens == sum(usage.total_tokens for usage in usages)
    assert (metric.cost, metric.interaction_count) == (3.5, 7)


async def _answer() -> None: ...


@pytest.mark.parametrize("answer", ["text", b"{}", 1, 1.5, True, [], (), [{"usage": None}], object(), print])
def test_what_is_no_answer_is_a_type_error(answer: Any) -> None:
    with pytest.raises(TypeError, match=f"a {type(answer).__name__} is not a response"):
        Usage.from_response(answer)


def test_forgotten_await_is_a_type_error() -> None:
    coroutine = _answer()
    with pytest.raises(TypeError, match="a coroutine is not a response"):
        Usage.from_response(coroutine)
    coroutine.close()


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"inputTokens": 1, "outputTokens": 2},
        {"prompt_tokens": None, "total_tokens": 3},
        {"input_tokens": 14},  # what counting tokens returns: nothing was completed
        {"output_tokens": 15},  # of a stream of Anthropic's, as it was once
        {"input_tokens": None, "output_tokens": 15},
        [1, 2, 3],
        "many",
        7,
    ],
)
def test_usage_of_no_known_form_is_a_value_error(usage: Any) -> None:
    with pytest.raises(ValueError, match="neither prompt_tokens nor input_tokens"):
        Usage.from_response({"usage": usage})


CHAT = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
MESSAGE = {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3}
FIELDS = [(usage, key) for usage in (CHAT, MESSAGE) for key in usage]


@pytest.mark.parametrize(("usage", "key"), FIELDS)
@pytest.mark.parametrize("count", ["1", 1.0, True, False, [], {}])
def test_count_that_is_no_int_is_a_type_error(usage: dict[str, Any], key: str, count: Any) -> None:
    with pytest.raises(TypeError, match=f"{key} of the usage must be an int, not {type(count).__name__}"):
        Usage.from_response({"usage": usage | {key: count}})


@pytest.mark.parametrize(("usage", "key"), FIELDS)
@pytest.mark.parametrize("count", [-1, INT64_MAX + 1, 10**400])
def test_count_out_of_range_is_a_value_error(usage: dict[str, Any], key: str, count: int) -> None:
    with pytest.raises(ValueError, match=f"{key} of the usage must be from 0"):
        Usage.from_response({"usage": usage | {key: count}})


def test_counts_that_add_up_to_too_much_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="add up to more"):
        Usage.from_response({"usage": MESSAGE | {"input_tokens": INT64_MAX}})
    with pytest.raises(ValueError, match="add up to more"):
        Usage.from_response({"usage": {"prompt_tokens": INT64_MAX, "completion_tokens": 1}})


def test_largest_counts_are_taken() -> None:
    usage = {"prompt_tokens": INT64_MAX, "completion_tokens": INT64_MAX, "total_tokens": INT64_MAX}
    assert Usage.from_response(usage) == Usage(INT64_MAX, INT64_MAX, INT64_MAX)


def test_total_is_what_the_provider_says_and_the_sum_where_it_says_nothing() -> None:
    assert Usage.from_response({"usage": CHAT | {"total_tokens": 99}}) == Usage(1, 2, 99)
    assert Usage.from_response({"usage": CHAT | {"total_tokens": None}}) == Usage(1, 2, 3)


def test_total_of_zero_is_one_that_was_said() -> None:
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "cache_read_input_tokens": 5}
    assert Usage.from_response({"usage": usage}) == Usage(0, 0, 0)


def test_error_of_a_property_of_the_answer_goes_on_its_way() -> None:
    class Answer:
        @property
        def usage(self) -> None:
            raise OSError("not read yet")

    with pytest.raises(OSError, match="not read yet"):
        Usage.from_response(Answer())
