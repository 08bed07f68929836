"""The options of the commands that start without click.

Written by scripts/generate.py from cli/run.py, cli/record.py and kinds/catalog.py: change those.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Command = tuple[tuple[str, ...] | None, dict[str, tuple[str, str]], dict[str, Any]]
EVENTS = {
    "tool": "tool_call",
    "started": "tool_started",
    "heal": "heal_trigger",
    "bisect": "bisect_trigger",
    "heal-outcome": "heal_outcome",
    "heal-duration": "heal_duration",
    "heal-loop": "heal_loop",
    "bisect-outcome": "bisect_outcome",
    "edit-strategy": "edit_strategy",
    "startup": "startup",
    "completion": "completion",
    "cancellation": "cancellation",
}
"""The kind of record that a command of `record` makes."""
COMMANDS: dict[str, Command] = {
    "run": (
        None,
        {"--tool": ("tool", "text"), "--phase": ("phase", "text"), "--session": ("directory", "text")},
        {"tool": None, "phase": None, "directory": None},
    ),
    "record": (None, {"--session": ("directory", "text")}, {"directory": None}),
    "record llm": (
        ("phase",),
        {
            "--session": ("directory", "text"),
            "--prompt-tokens": ("prompt_tokens", "count"),
            "--completion-tokens": ("completion_tokens", "count"),
            "--total-tokens": ("total_tokens", "count"),
            "--cached-tokens": ("cached_tokens", "count"),
            "--cache-write-tokens": ("cache_write_tokens", "count"),
            "--reasoning-tokens": ("reasoning_tokens", "count"),
            "--cost": ("cost", "number"),
            "--model": ("model", "text"),
            "--duration-ms": ("duration_ms", "count"),
            "--prompt-hash": ("prompt_hash", "text"),
            "--truncated-input": ("truncated_input", "on"),
        },
        {
            "directory": None,
            "total_tokens": None,
            "cached_tokens": 0,
            "cache_write_tokens": 0,
            "reasoning_tokens": 0,
            "cost": None,
            "model": None,
            "duration_ms": None,
            "prompt_hash": None,
            "truncated_input": False,
        },
    ),
    "record plan-outcome": (
        ("task_id", "action", "description"),
        {
            "--session": ("directory", "text"),
            "--ok": ("success", "on"),
            "--failed": ("success", "off"),
            "--duration-ms": ("duration_ms", "count"),
            "--heals-used": ("heals_used", "count"),
            "--tool-calls": ("tool_calls", "count"),
            "--file": ("files", "texts"),
            "--error-type": ("error_type", "text"),
        },
        {
            "directory": None,
            "description": "",
            "success": None,
            "heals_used": 0,
            "tool_calls": 0,
            "files": (),
            "error_type": "",
        },
    ),
    "record phase": (
        ("phase",),
        {
            "--session": ("directory", "text"),
            "--ok": ("success", "on"),
            "--failed": ("success", "off"),
            "--duration-ms": ("duration_ms", "count"),
        },
        {"directory": None, "success": None, "duration_ms": None},
    ),
    "record tool": (
        ("name",),
        {
            "--session": ("directory", "text"),
            "--ok": ("success", "on"),
            "--failed": ("success", "off"),
            "--duration-ms": ("duration_ms", "count"),
            "--error": ("error", "text"),
            "--call": ("call", "text"),
        },
        {"directory": None, "success": None, "error": None, "call": None},
    ),
    "record started": (
        ("name",),
        {"--session": ("directory", "text"), "--call": ("call", "text")},
        {"directory": None},
    ),
    "record heal": (("phase",), {"--session": ("directory", "text")}, {"directory": None}),
    "record bisect": (("phase",), {"--session": ("directory", "text")}, {"directory": None}),
    "record heal-outcome": (
        ("phase",),
        {"--session": ("directory", "text"), "--ok": ("success", "on"), "--failed": ("success", "off")},
        {"directory": None, "success": None},
    ),
    "record heal-duration": (
        ("phase",),
        {"--session": ("directory", "text"), "--duration-ms": ("duration_ms", "count")},
        {"directory": None},
    ),
    "record heal-loop": (("phase",), {"--session": ("directory", "text")}, {"directory": None}),
    "record bisect-outcome": (
        ("phase",),
        {"--session": ("directory", "text"), "--ok": ("success", "on"), "--failed": ("success", "off")},
        {"directory": None, "success": None},
    ),
    "record edit-strategy": (("strategy",), {"--session": ("directory", "text")}, {"directory": None}),
    "record startup": (
        (),
        {
            "--session": ("directory", "text"),
            "--duration-ms": ("duration_ms", "count"),
            "--config-load-ms": ("config_load_ms", "count"),
            "--provider-ms": ("provider_ms", "count"),
            "--tui-ms": ("tui_ms", "count"),
        },
        {"directory": None},
    ),
    "record completion": (
        ("phase",),
        {
            "--session": ("directory", "text"),
            "--ok": ("success", "on"),
            "--failed": ("success", "off"),
            "--timeout": ("timeout", "on"),
        },
        {"directory": None, "success": None, "timeout": False},
    ),
    "record cancellation": (("phase", "reason"), {"--session": ("directory", "text")}, {"directory": None}),
}
"""The arguments, the options and the defaults of each command.

The arguments are None if the words from the first argument on are not the command's own. An
option has the name and the kind of its value.
"""
