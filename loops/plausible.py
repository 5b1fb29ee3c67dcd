"""Numbers of a checkpoint that no run comes to. Nothing that follows need depend on them, so they are looked at where a
replay begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from pawl.lifecycle.machines.adapter import AdapterPhase
from pawl.lifecycle.machines.session import SessionPhase
from pawl.lifecycle.machines.weights import Weights
from pawl.lifecycle.numbers import Newest
from pawl.lifecycle.snapshot import Plain

COUNTED = ("counters", "counts", "by_cause")
"""Parts of which every field counts something."""
_ELSEWHERE = "admissions behind epoch holds joined moves newest newest_long step tickets updates uses"
COUNTERS = frozenset(_ELSEWHERE.split())
"""Fields elsewhere that do."""
PARTS = ("counters", "companions", "memory", "weights", "groups", "residency")


class _Fetching(msgspec.Struct):
    resume_at: float = 0.0


class _Companion(msgspec.Struct):
    ready: list[int] = []
    decided: list[int] = []
    fetching: _Fetching | None = None


class _Typed(msgspec.Struct):
    """Fields that a loop takes as they come."""

    try_again: bool
    companions: list[_Companion]
    sessions: list[tuple[str, int, float, bool, SessionPhase, int, list[Any], list[Any]]]


def check_numbers(plain: Plain) -> None:
    """Raises ValueError for a state that contradicts itself: a count that is none, or is not what it counts, an adapter
    or an update of the weights that cannot be."""
    msgspec.convert(plain, _Typed)
    for name, value in _counts(plain):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"a checkpoint counts {value!r} {name}")
    _check_ends(plain["counters"], plain["step"])
    _check_rows(plain["table"])
    for what, count, numbers in _given(plain):
        if count < max(numbers, default=0):
            raise ValueError(f"a checkpoint has {what} {max(numbers)}, and {count} is said to be the newest")
    _check_weights(plain["weights"])
    for companion in plain["companions"]:
        _check_adapters(companion.get("adapters", ()))


def check_newest(newest: Newest, live: list[int]) -> None:
    """Raises ValueError where a live request is newer than the newest."""
    for request in live:
        if not newest.has_been(request):
            raise ValueError(f"a checkpoint has request {request}, and an older one is said to be the newest")


def _counts(plain: Plain, inside: str = "") -> Iterator[tuple[str, Any]]:
    """What counts something, each with its name."""
    for name, value in plain.items():
        if not inside and isinstance(value, dict | list) and name not in PARTS:
            continue
        within = inside if inside in COUNTED else name
        for each in value if isinstance(value, list) else (value,):
            if isinstance(each, dict):
                yield from _counts(each, within)
            elif inside in COUNTED or (name in COUNTERS and each is value):
                yield name, each


def _check_ends(counters: Plain, step: int) -> None:
    ended, by_cause = counters["finished"] + counters["aborted"], sum(counters["by_cause"].values())
    if ended != by_cause:
        raise ValueError(f"a checkpoint counts {ended} requests that ended, and {by_cause} by their causes")
    steps, lost = counters["steps"], counters["steps_lost"]
    # A step that is lost may give its number to the next. More numbers than steps are no contradiction: a step that an
    # exception meets before it is on its way has had one, and is not counted.
    if steps - lost > step:
        raise ValueError(f"a checkpoint counts {steps} steps and {lost} lost ones, and step {step} was the newest")
    if not counters["accepted_tokens"] <= counters["draft_tokens"] >= counters["drafts"]:
        raise ValueError("a checkpoint counts more drafts, or tokens of them that were accepted, than tokens of drafts")


def _check_rows(table: Plain) -> None:
    """Every row is free or has a request."""
    rows = [*table["free"], *np.frombuffer(table["rows"], np.int32).tolist()]
    if sorted(rows) != list(range(len(table["attempt"]) // 4)):
        raise ValueError("a checkpoint has a row that is neither free nor one request's, or is so twice")


def _check_weights(weights: Plain) -> None:
    """There is an update while there is one, and it is the newest."""
    update = weights["update"]
    if (update is None) != (weights["state"] == Weights.SERVING):
        raise ValueError(f"a checkpoint has weights that are {weights['state']}, and the update {update}")
    if update is not None and update["ticket"] != weights["updates"]:
        raise ValueError(f"a checkpoint counts {weights['updates']} updates, and {update['ticket']} is under way")


def _check_adapters(adapters: list[Plain]) -> None:
    """They stand in the order of their numbers, and have names, of which no two that may be asked for have the same."""
    numbers = [each["number"] for each in adapters]
    if sorted({*numbers, 0})[1:] != numbers:
        raise ValueError(f"a checkpoint has adapters with the numbers {numbers}")
    for each in adapters:
        known = each["phase"] != AdapterPhase.READY or each["fingerprint"]
        if not (each["name"] and each["source"] and known) or min(each["ticket"], each["used"], each["asker"]) < 0:
            raise ValueError(f"a checkpoint has the adapter {each}")
    names = Counter(each["name"] for each in adapters if each["phase"] in (AdapterPhase.LOADING, AdapterPhase.READY))
    if names and max(names.values()) > 1:
        raise ValueError(f"a checkpoint has two adapters of the name {names.most_common(1)[0][0]!r}")


def _given(plain: Plain) -> Iterator[tuple[str, int, list[int]]]:
    """What numbers are given to: (what, the newest, those that are there)."""
    groups = plain["groups"]
    yield "group", groups["joined"], [group["number"] for group in groups["groups"].values()]
    for companion in plain["companions"]:
        if "adapters" in companion:
            adapters = companion["adapters"]
            yield "adapter", companion["newest"], [each["number"] for each in adapters]
            yield "ticket", companion["tickets"], [each["ticket"] for each in adapters]
            yield "use", companion["uses"], [each["used"] for each in adapters]
        if "prefills" in companion:
            yield "prefill", companion["tickets"], [each[0] for each in companion["prefills"]]
        if "fetching" in companion:
            fetching = companion["fetching"]
            yield "fetch", fetching["tickets"], [each[0] for each in fetching["fetches"]]
