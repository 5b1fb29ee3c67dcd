"""Everything that decides what a loop does next, as plain data, and back: what a checkpoint holds.

Taken when no step is in flight. Restored into a fresh loop of the same configuration, with the cache in Python.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np

from pawl.lifecycle import snapshot as table_snapshot
from pawl.lifecycle.machines.serving import Serving
from pawl.lifecycle.numbers import Newest
from pawl.lifecycle.snapshot import Plain
from pawl.lifecycle.states import Cause
from pawl.loops.intake import Intake, Order
from pawl.loops.loop import Loop
from pawl.loops.orders import order_of
from pawl.loops.plausible import check_newest, check_numbers
from pawl.loops.policy import Policy
from pawl.memory import snapshot as memory_snapshot
from pawl.memory.snapshot import NoSnapshot


def snapshot_of(intake: Intake) -> Plain:
    """All that decides. Raises NoSnapshot, which says what cannot be written out, and while a step is in flight."""
    loop = intake.loop
    queues = loop.queues
    return {
        "companions": [companion.snapshot() for companion in loop.companions],
        "memory": memory_snapshot.snapshot_of(loop.memory),
        "table": table_snapshot.snapshot_of(loop.table),
        "waiting": list(queues.waiting),
        "retracted": queues.retracted,
        "prefilling": list(queues.prefilling),
        "decoding": queues.decoding.astype(np.int32).tobytes(),
        "behind": queues.behind,
        "admissions": queues._admissions,
        "policy": _policy(loop),
        "drafts": loop.drafter.snapshot() if loop.drafter is not None else b"",
        "counters": msgspec.to_builtins(loop.counters),
        "try_again": loop.try_again,
        "step": loop.journal._step,
        "orders": [(number, msgspec.msgpack.encode(order)) for number, order in intake.waiting.items()],
        "draining": intake.draining,
        "serving": str(loop.serving),
        "limits": loop.limits.snapshot(),
        "sessions": loop.requests.sessions.snapshot(),
        "weights": intake.weights.snapshot(),
        "groups": intake.groups.snapshot(),
        "residency": intake.memory.snapshot(),
        "newest": intake._newest.short,
        "newest_long": intake._newest.long,
        "ended_early": [(number, str(cause), text) for number, (cause, text) in intake._ended_early.items()],
    }


def checkpoint(intake: Intake, now: float) -> None:
    """Record all of it. No step is in flight."""
    try:
        state, missing = msgspec.msgpack.encode(snapshot_of(intake)), ""
    except NoSnapshot as error:
        state, missing = None, str(error)
    intake.loop.journal.checkpoint(state, missing, now)


def restore(intake: Intake, plain: Plain) -> None:
    """Make a fresh loop that of the snapshot. Raises MemoryViolation where its memory has another digest, and
    ValueError where its numbers contradict each other."""
    loop = intake.loop
    queues = loop.queues
    check_numbers(plain)
    memory_snapshot.restore(loop.memory, plain["memory"])
    table_snapshot.restore(loop.table, plain["table"])
    if loop.drafter is not None:
        loop.drafter.restore(plain["drafts"])
    for companion, kept in zip(loop.companions, plain["companions"], strict=True):
        companion.restore(kept)
    queues.waiting = dict.fromkeys(plain["waiting"])
    queues.retracted = list(plain["retracted"])
    queues.prefilling = dict.fromkeys(plain["prefilling"])
    queues.decoding = np.frombuffer(plain["decoding"], np.int32).astype(np.intp)
    queues.behind = plain["behind"]
    queues._admissions = plain["admissions"]
    generator = _generator(loop)
    if generator is not None:
        version, numbers, gauss = plain["policy"]
        generator.setstate((version, tuple(numbers), gauss))
    for name, value in plain["counters"].items():
        setattr(loop.counters, name, value)
    loop.counters.by_cause = {Cause(cause): count for cause, count in loop.counters.by_cause.items()}
    loop.try_again = plain["try_again"]
    loop.journal._step = plain["step"]
    loop.serving = Serving(plain["serving"])
    loop.limits.restore(plain["limits"])
    loop.requests.sessions.restore(plain["sessions"])
    intake.waiting = {number: _order(data) for number, data in plain["orders"]}
    intake.draining, intake._newest = plain["draining"], Newest(plain["newest"], plain["newest_long"])
    intake.weights.restore(plain["weights"])
    intake.groups.restore(plain["groups"])
    intake.memory.restore(plain["residency"])
    intake._ended_early = {number: (Cause(cause), text) for number, cause, text in plain["ended_early"]}
    check_newest(intake._newest, list(loop.table.row_of))


def _order(data: bytes) -> Order:
    fields = msgspec.msgpack.decode(data)
    return order_of(fields.pop("type"), fields)


def _generator(loop: Loop) -> random.Random | None:
    """What the policy draws from. Raises NoSnapshot for one of the user's own that keeps anything."""
    policy = getattr(getattr(loop.planner, "admission", None), "policy", None)
    if type(policy).__module__ != Policy.__module__ and getattr(policy, "__dict__", None):
        raise NoSnapshot("what an order of admission of the user's own keeps")
    return getattr(policy, "_random", None)


def _policy(loop: Loop) -> Any:
    generator = _generator(loop)
    return None if generator is None else generator.getstate()
