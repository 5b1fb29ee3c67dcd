"""Conditions on a sound run under which forgeries of some kinds leave no contradiction in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pawl.lifecycle.machines.adapter import AdapterEvent, AdapterPhase
from pawl.lifecycle.machines.weight_group import GroupPhase
from pawl.lifecycle.machines.weights import WeightEvent, Weights
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import (
    AdapterMoved,
    Answered,
    AnswersClosed,
    Cached,
    Checkpoint,
    Closed,
    Contained,
    Delivered,
    Flushed,
    Idled,
    MemoryMoved,
    Record,
    StepCommitted,
    StepPlanned,
    Submitted,
    TierTold,
    Transition,
    WeightGroupMoved,
    WeightsMoved,
    int32s,
)
from pawl.lifecycle.states import ABORT_CAUSES, Cause, Event, State
from tests.pawl.forger import Forgery

Condition = Callable[[Sequence[Record], Forgery], bool]
"""(sound run, forgery)"""


class Life(NamedTuple):
    """What became of a request in the sound run."""

    cause: Cause
    """Of its end; NONE: it never came to the scheduler."""
    ended_at: int
    """The record that says so; -1: none does."""
    num_computed: int
    """Positions that committed steps computed for it."""
    num_output: int


def life_of(records: Sequence[Record], request: int) -> Life:
    """The life of a request."""
    history = History()
    life = Life(Cause.NONE, -1, 0, 0)
    for at, record in enumerate(records):
        history.advance(record)
        match record:
            case StepCommitted():
                mine = (history.step.requests == request) & history.committed.live
                num_computed = int(history.committed.ends[mine].max(initial=life.num_computed))
                num_output = life.num_output + int(history.committed.counts[mine].sum())
                life = life._replace(num_computed=num_computed, num_output=num_output)
            case Transition(event=Event.FINISH | Event.ABORT) if record.request == request:
                life = life._replace(cause=record.cause, ended_at=at)
    return life


def drew_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    return _mine(records, forgery).num_output == 0


def computed_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    return _mine(records, forgery).num_computed == 0


def computed_one(records: Sequence[Record], forgery: Forgery) -> bool:
    submitted: Any = records[forgery.at]
    return min(_mine(records, forgery).num_computed, len(int32s(submitted.tokens))) <= 1


def computed_too_little(records: Sequence[Record], forgery: Forgery) -> bool:
    submitted: Any = records[forgery.at]
    return _mine(records, forgery).num_computed < len(int32s(submitted.tokens))


def scores_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    submitted: Any = records[forgery.at]
    return submitted.sampling.top_logprobs is None or drew_nothing(records, forgery)


def nobody_came_after(records: Sequence[Record], forgery: Forgery) -> bool:
    return not any(isinstance(each, Submitted) for each in records[forgery.at :])


def ended_otherwise(*causes: Cause) -> Condition:
    return lambda records, forgery: _mine(records, forgery).cause not in causes


def others_serve(records: Sequence[Record], forgery: Forgery) -> bool:
    """Other weights than those of the start, by then or before a request that comes then has ended."""
    until = _mine(records, forgery).ended_at if isinstance(records[forgery.at], Submitted) else forgery.at
    before = records[: max(until, forgery.at)]
    return any(isinstance(each, WeightsMoved) and each.event is WeightEvent.SWAPPED for each in before)


def no_worker_lost(records: Sequence[Record], _: Forgery) -> bool:
    return not any(isinstance(each, Transition) and each.cause == Cause.WORKER_LOST for each in records)


def _mine(records: Sequence[Record], forgery: Forgery) -> Life:
    record: Any = records[forgery.at]
    return life_of(records, record.request)


def names_nobody_live(records: Sequence[Record], forgery: Forgery) -> bool:
    """Whoever the order names in the sound run or in the forged one alone has ended by then, never comes, or is refused
    for a cause of its own when it comes."""
    changed = _named(records[forgery.at]) ^ _named(forgery.changed)
    refused = {
        each.request
        for each in records
        if isinstance(each, Transition) and each.source is State.NEW and each.cause is Cause.INVALID
    }
    return all(request in refused or life_of(records, request).ended_at < forgery.at for request in changed)


def nobody_waited(records: Sequence[Record], forgery: Forgery) -> bool:
    """No request goes on with what was fetched."""
    follows = next((each for each in records[forgery.at + 1 :] if not isinstance(each, Cached)), None)
    return not (isinstance(follows, Transition) and follows.event is Event.FETCHED)


def _passed(records: Sequence[Record], forgery: Forgery) -> Sequence[Record]:
    """What the record was moved past."""
    at, to = forgery.at, next(to for to, each in enumerate(forgery.records) if each is records[forgery.at])
    return records[at + 1 : to + 1] if to > at else records[to:at]


def passes_no_decision(records: Sequence[Record], forgery: Forgery) -> bool:
    """It was moved past orders, checkpoints and plans that came to nothing; for orders and results arrivals too."""
    passed = _passed(records, forgery)
    kinds: tuple[type[Record], ...] = (Delivered, Checkpoint, Idled, Answered, AnswersClosed, TierTold)
    moved = records[forgery.at]
    if isinstance(moved, Delivered | StepCommitted | AdapterMoved):
        kinds += (Submitted,)
    if isinstance(moved, StepCommitted):  # who waits is no part of a step
        kinds += (WeightGroupMoved,)
        passed = [each for each in passed if not (isinstance(each, Transition) and each.source is State.QUEUED)]
    if isinstance(moved, AdapterMoved):
        kinds += (WeightsMoved, WeightGroupMoved, Flushed, Cached)
        passed = [each for each in passed if not isinstance(each, Transition) or each.event is not Event.SUBMIT]
    if isinstance(moved, Delivered) and "lora_name" in moved.fields:
        others = [each for each in passed if isinstance(each, AdapterMoved) and each.name != moved.fields["lora_name"]]
        passed = [each for each in passed if each not in others]
    return all(isinstance(each, kinds) for each in passed)


def joins_another(records: Sequence[Record], forgery: Forgery) -> bool:
    """It was moved beside another one: that is to leave it out here, and to have the other twice."""
    at = next(at for at, each in enumerate(forgery.records) if each is records[forgery.at])
    beside = forgery.records[max(at - 1, 0) : at] + forgery.records[at + 1 : at + 2]
    return any(isinstance(each, Idled) for each in beside)


def drew_what_may_coincide(records: Sequence[Record], forgery: Forgery) -> bool:
    submitted: Any = records[forgery.at]
    return _mine(records, forgery).num_output <= 2 or bool(submitted.sampling.logit_bias)


def neither_came(records: Sequence[Record], forgery: Forgery) -> bool:
    """The scheduler never heard of the request that is answered, nor of the one that the forgery names."""
    both: tuple[Any, Any] = records[forgery.at], forgery.changed
    lives = [life_of(records, each.request) for each in both]
    return all(life.cause is Cause.NONE for life in lives) and both[0].cause in ABORT_CAUSES and not both[0].num_output


def concerns_stale_tokens(records: Sequence[Record], forgery: Forgery) -> bool:
    """Whoever the tokens that differ were drawn for has left."""
    history, forged = History(), forgery.changed
    for record in records[: forgery.at + 1]:
        history.advance(record)
    sound = records[forgery.at]
    if not isinstance(sound, StepCommitted) or not isinstance(forged, StepCommitted):
        return False
    if len(forged.tokens) != len(sound.tokens):
        return False
    counts = history.step.samples if sound.counts is None else int32s(sound.counts)
    live = np.repeat(history.committed.live, counts)
    before, after = int32s(sound.tokens), int32s(forged.tokens)
    return len(before) == len(after) and not live[before != after].any()


def counts_one_each(records: Sequence[Record], forgery: Forgery) -> bool:
    """One token for each segment that draws, which is what no counts mean."""
    changed = forgery.changed
    return isinstance(changed, StepCommitted) and changed.counts is not None and int(int32s(changed.counts).max()) <= 1


def changes_no_pause(records: Sequence[Record], forgery: Forgery) -> bool:
    """The engine is not paused, or plans no step before the next such order."""
    before = [each.kind for each in records[: forgery.at] if isinstance(each, Delivered)]
    paused = "pause" in before and "continue" not in before[len(before) - before[::-1].index("pause") :]
    return not paused or plans_nothing(records, forgery)


def stands_still(records: Sequence[Record], forgery: Forgery) -> bool:
    """Other weights come, or memory is released, before the engine is to go on."""
    rest = records[forgery.at + 1 :]
    ends = next((at for at, each in enumerate(rest) if isinstance(each, Delivered) and each.kind == "continue"), None)
    return any(isinstance(each, WeightsMoved | MemoryMoved) for each in rest[:ends])


def nobody_runs(records: Sequence[Record], forgery: Forgery) -> bool:
    history = History()
    for record in records[: forgery.at]:
        history.advance(record)
    return not history.working.any()


def passes_none_of_its(records: Sequence[Record], forgery: Forgery) -> bool:
    """Of the requests that it ends it is moved past nothing but their arrival."""
    named = _named(records[forgery.at])
    mine = [each for each in _passed(records, forgery) if getattr(each, "request", None) in named]
    silent = (Submitted, Answered)  # what a client is told stands anywhere beside what was decided
    return all(isinstance(each, silent) or getattr(each, "event", None) is Event.SUBMIT for each in mine)


def passes_no_step(records: Sequence[Record], forgery: Forgery) -> bool:
    """Nothing is planned where it was and where it is now."""
    return not any(isinstance(each, StepPlanned) for each in _passed(records, forgery))


def did_not_stop_it(records: Sequence[Record], forgery: Forgery) -> bool:
    """The tokens that differ are none that the request drew."""
    sound, forged = (set(each.sampling.stop_token_ids) for each in _both(records, forgery))
    history, drawn = History(), set[int]()
    for record in records:
        row = history.open.get(_both(records, forgery)[0].request)
        if isinstance(record, Transition) and row is not None and record.row == row:
            drawn |= set(history.output(row).tolist())
        history.advance(record)
    return not (sound ^ forged) & drawn


def _both(records: Sequence[Record], forgery: Forgery) -> tuple[Any, Any]:
    return records[forgery.at], forgery.changed


def nobody_is_left(records: Sequence[Record], forgery: Forgery) -> bool:
    """Whoever was live has ended by the orders that came at the same moment."""
    history = History()
    for at, record in enumerate(records):
        if at > forgery.at and not isinstance(record, Delivered | Transition | Answered | Cached):
            return not history.open
        history.advance(record)
    return True


def plans_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    """Until the next order of its kind no step is planned."""
    order: Any = records[forgery.at]
    for each in records[forgery.at + 1 :]:
        if isinstance(each, Delivered) and each.kind == order.kind:
            return True
        if isinstance(each, StepPlanned):
            return False
    return True


def nothing_came_of_it(records: Sequence[Record], forgery: Forgery) -> bool:
    """It was refused, or tells of what is over: nothing is recorded to have followed from it."""
    order: Any = records[forgery.at]
    rest = (each for each in records[forgery.at + 1 :] if not isinstance(each, Cached | Answered))
    kinds = next(kinds for word, kinds in _FOLLOWS.items() if word in order.kind)
    follows = next(rest, None)
    if isinstance(follows, AdapterMoved) and "lora_name" in order.fields:
        leaves = follows.target in (AdapterPhase.DRAINING, AdapterPhase.GONE)
        other = follows.name != order.fields["lora_name"] or follows.event is AdapterEvent.EVICTED
        return other or leaves != order.kind.startswith("unload")
    return not isinstance(follows, kinds)


_FOLLOWS: dict[str, tuple[type[Record], ...]] = {
    "memory": (MemoryMoved,),
    "adapter": (AdapterMoved,),
    "group": (WeightGroupMoved,),
    "parts": (WeightGroupMoved,),
    "weights": (WeightsMoved, WeightGroupMoved),
    "runner": (Transition,),
}
"""What may follow from an order, by a word of its kind."""


def nobody_left(records: Sequence[Record], forgery: Forgery) -> bool:
    """The engine stops before it plans again, but for who is refused: what orders alone do may come in between."""
    rest = records[forgery.at + 1 :]
    refused = {each.request for each in rest if isinstance(each, Transition) and each.source is State.NEW}
    rest = [each for each in rest if getattr(each, "request", None) not in refused]
    of_orders = Delivered | WeightGroupMoved | MemoryMoved
    return all(isinstance(each, of_orders | Answered | AnswersClosed | Closed) for each in rest)


def not_named_again(records: Sequence[Record], forgery: Forgery) -> bool:
    """No later order about the group is done."""
    order: Any = records[forgery.at]
    later = ((at, each) for at, each in enumerate(records) if at > forgery.at and isinstance(each, Delivered))
    mine = [at for at, each in later if each.fields.get("group_name") == order.fields["group_name"]]
    return all(nothing_came_of_it(records, forgery._replace(at=at)) for at in mine)


def was_never_staged(records: Sequence[Record], forgery: Forgery) -> bool:
    """Its group is lost with it, the update fails, or the engine stops, before all of it has come."""
    after = records[forgery.at + 1]
    if isinstance(after, WeightGroupMoved) and after.target is GroupPhase.ABSENT:
        return True
    moves = [each for each in records[forgery.at + 1 :] if isinstance(each, WeightsMoved)]
    ends = next((at for at, each in enumerate(moves) if each.target is Weights.SERVING), len(moves))
    return all(each.event is not WeightEvent.STAGED for each in moves[:ends])


def goes_on_from_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    """The turn has no parent, and no turn of its session is taken after it, or the next one in place of all."""
    order: Any = records[forgery.at]
    after = next(_turns_after(records, forgery), None)
    alone = after is None or (after["parent"] is None and after["replace"])
    return order.fields["parent"] is None and alone


def is_never_served(records: Sequence[Record], forgery: Forgery) -> bool:
    """Weights with the content that it tells have not come to serve."""
    order: Any = records[forgery.at]
    later = (each for each in records[forgery.at + 1 :] if isinstance(each, WeightsMoved))
    return all(each.fingerprint != order.fields["fingerprint"] for each in later)


def never_served(records: Sequence[Record], forgery: Forgery) -> bool:
    """No weights of the name that it gives have come to serve."""
    order: Any = records[forgery.at]
    later = (each for each in records[forgery.at + 1 :] if isinstance(each, WeightsMoved))
    return all(each.version != order.fields["weight_version"] for each in later)


def was_refused(records: Sequence[Record], forgery: Forgery) -> bool:
    """The turn is refused when it comes."""
    order: Any = records[forgery.at]
    mine = (each for each in records if isinstance(each, Transition) and each.request == order.fields["request"])
    return next((each.event is Event.ABORT and each.source is State.NEW for each in mine), True)


def no_turn_follows(records: Sequence[Record], forgery: Forgery) -> bool:
    """No turn of the session is taken after it."""
    return next(_turns_after(records, forgery), None) is None


def _turns_after(records: Sequence[Record], forgery: Forgery) -> Iterator[dict[str, Any]]:
    """The session's turns that are taken after it."""
    order: Any = records[forgery.at]
    name = order.fields.get("session", order.fields.get("session_id"))
    for at, each in enumerate(records[forgery.at + 1 :], forgery.at + 1):
        if not isinstance(each, Delivered) or each.kind != "begin_turn" or each.fields["session"] != name:
            continue
        if not was_refused(records, forgery._replace(at=at)):
            yield each.fields


def _named(record: Record | None) -> set[int]:
    fields = record.fields if isinstance(record, Delivered) else {}
    return {*fields.get("requests", ()), *({fields["request"]} if "request" in fields else ())}


def never_came(records: Sequence[Record], forgery: Forgery) -> bool:
    return _mine(records, forgery).cause is Cause.NONE and _cause(forgery) in ABORT_CAUSES


def answered_in_place(records: Sequence[Record], forgery: Forgery) -> bool:
    """It came at a time at which the engine stopped, or beside a failure: the gateway may answer for the scheduler."""
    answer: Any = records[forgery.at]
    orders = (each for each in records if isinstance(each, Delivered) and each.time <= answer.time)
    stopped = any(order.kind in ("drain", "end_all") for order in orders)
    failed = any(isinstance(each, Contained) for each in records)
    if _cause(forgery) is Cause.INTERNAL:  # or it loses an actor while the scheduler stops
        return failed or stopped
    return _cause(forgery) is Cause.DRAINED and stopped


def may_be_cut(records: Sequence[Record], forgery: Forgery) -> bool:
    return _cause(forgery) is Cause.STOP_STRING or answered_in_place(records, forgery)


def _cause(forgery: Forgery) -> Cause:
    changed = forgery.changed
    return changed.cause if isinstance(changed, Answered) else Cause.NONE


def always(records: Sequence[Record], forgery: Forgery) -> bool:
    return True
