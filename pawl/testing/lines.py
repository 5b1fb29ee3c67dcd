"""Lines of the engine at which something may fail: all but those that only move what is at hand."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pawl

ROOM = Path(pawl.__file__).parent
WATCHED = (
    *("actors/scheduler.py", "actors/step_report.py", "actors/worker.py", "actors/recorder.py", "actors/tokenizer.py"),
    *("actors/gateway.py", "actors/open_requests.py", "actors/detokenizer.py", "actors/text/stream.py"),
    *("actors/control/state.py", "actors/tiers/", "actors/storage.py", "actors/grammar.py"),
    *("actors/stager.py", "actors/weight_client.py", "actors/memory_client.py", "actors/turns.py"),
    *("actors/weight_groups.py", "actors/adapter_client.py", "actors/askers.py", "actors/turn_timer.py"),
    *("actors/expert_recorder.py", "actors/router.py", "actors/routed.py", "actors/placement.py"),
    *("actors/prefill_desk.py", "actors/replica_asks.py", "actors/gathering.py", "actors/asks.py"),
    *("actors/known_replicas.py", "actors/answer_traces.py", "actors/sink.py", "actors/unread.py"),
    *("actors/adapter_names.py", "actors/step_measures.py", "actors/weight_questions.py"),
    *("actors/agenda.py", "actors/fleet.py", "actors/fleet_size.py", "actors/joining.py", "actors/prefillers.py"),
    *("loops/", "memory/", "lifecycle/journal.py", "lifecycle/requests.py", "lifecycle/machine.py"),
)
"""Files and folders whose lines may raise."""
UNWATCHED = ("memory/prefix/events.py",)
"""What looks on in tests."""
TELLS_AGAIN = sys.version_info[:2] == (3, 12)
"""This Python tells of a line once more where a branch within it ends."""


@contextmanager
def tracing(called: Callable[[FrameType, str, Any], Any]) -> Iterator[None]:
    """Within this context `called` hears of each call in this thread, as `sys.settrace` has it; what it returns, of
    each line of that call as it begins."""
    before = sys.gettrace()
    sys.settrace((lambda frame, event, about: begun(called(frame, event, about))) if TELLS_AGAIN else called)
    try:
        yield
    finally:
        sys.settrace(before)


def begun(traced: Callable[[FrameType, str, Any], Any] | None) -> Callable[[FrameType, str, Any], Any] | None:
    """`traced`, which hears of one frame, without lines that go on: with `TELLS_AGAIN` it would hear of one in its
    middle, behind what has been done there already, where nothing can fail."""
    if traced is None or not TELLS_AGAIN:
        return traced
    line, at = 0, 0

    def once(frame: FrameType, event: str, about: Any) -> Any:
        nonlocal line, at
        if event == "line":
            goes_on = frame.f_lineno == line and frame.f_lasti > at
            line, at = frame.f_lineno, frame.f_lasti
            if goes_on:
                return once
        traced(frame, event, about)
        return once

    return once


@cache
def watched(file: str) -> str | None:
    """This file below the package, where its lines may raise."""
    path = Path(file)
    below = path.relative_to(ROOM).as_posix() if path.is_relative_to(ROOM) else ""
    return below if below.startswith(WATCHED) and below not in UNWATCHED else None


@cache
def lines_that_raise(code: CodeType) -> frozenset[int]:
    """Lines of a function that do more than to move what is at hand: the others cannot fail."""
    lines, line = set(), code.co_firstlineno
    for instruction in dis.get_instructions(code):
        line = instruction.positions.lineno or line if instruction.positions else line
        if instruction.opname not in _MOVES:
            lines.add(line)
    return frozenset(lines)


_MOVES = frozenset(
    {
        "RESUME",
        "NOP",
        "LOAD_DEREF",
        "CACHE",
        "LOAD_CONST",
        "LOAD_FAST",
        "STORE_FAST",
        "STORE_ATTR",
        "RETURN_VALUE",
        "POP_TOP",
        "SWAP",
    }
    | {"COPY", "JUMP_FORWARD", "JUMP_BACKWARD", "PUSH_EXC_INFO", "POP_EXCEPT", "RERAISE", "COPY_FREE_VARS"}
    | {f"POP_JUMP_{way}IF_{what}" for way in ("FORWARD_", "") for what in ("FALSE", "TRUE", "NONE", "NOT_NONE")}
    | {"RETURN_CONST", "END_FOR", "LOAD_FAST_LOAD_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST", "TO_BOOL"}
)
"""Instructions that nothing can fail in, by their names in each Python since 3.11."""
