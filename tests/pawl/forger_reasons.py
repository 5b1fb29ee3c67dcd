"""What no trace can show of the forger's kinds, each with the reason, and when the reason holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import (
    Answered,
    AnswersClosed,
    Cached,
    Checkpoint,
    Contained,
    Delivered,
    Idled,
    Record,
    StepCommitted,
    StepPlanned,
    Submitted,
    TierTold,
    Transition,
    int32s,
)
from pawl.lifecycle.states import ABORT_CAUSES, Cause, Event
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


def _drew_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    return _mine(records, forgery).num_output == 0


def _computed_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    return _mine(records, forgery).num_computed == 0


def _computed_one(records: Sequence[Record], forgery: Forgery) -> bool:
    submitted: Any = records[forgery.at]
    return min(_mine(records, forgery).num_computed, len(int32s(submitted.tokens))) <= 1


def _computed_too_little(records: Sequence[Record], forgery: Forgery) -> bool:
    submitted: Any = records[forgery.at]
    return _mine(records, forgery).num_computed < len(int32s(submitted.tokens))


def _scores_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    submitted: Any = records[forgery.at]
    return submitted.sampling.top_logprobs is None or _drew_nothing(records, forgery)


def _nobody_came_after(records: Sequence[Record], forgery: Forgery) -> bool:
    return not any(isinstance(each, Submitted) for each in records[forgery.at :])


def _ended_otherwise(*causes: Cause) -> Condition:
    return lambda records, forgery: _mine(records, forgery).cause not in causes


def _no_worker_lost(records: Sequence[Record], _: Forgery) -> bool:
    return not any(isinstance(each, Transition) and each.cause == Cause.WORKER_LOST for each in records)


def _mine(records: Sequence[Record], forgery: Forgery) -> Life:
    record: Any = records[forgery.at]
    return life_of(records, record.request)


def _names_nobody_live(records: Sequence[Record], forgery: Forgery) -> bool:
    """Whoever the order names in the sound run or in the forged one alone has ended by then or never comes."""
    changed = _named(records[forgery.at]) ^ _named(forgery.changed)
    return all(life_of(records, request).ended_at < forgery.at for request in changed)


def _nobody_waited(records: Sequence[Record], forgery: Forgery) -> bool:
    """No request goes on with what was fetched."""
    follows = next((each for each in records[forgery.at + 1 :] if not isinstance(each, Cached)), None)
    return not (isinstance(follows, Transition) and follows.event is Event.FETCHED)


def _passed(records: Sequence[Record], forgery: Forgery) -> Sequence[Record]:
    """What the record was moved past."""
    at, to = forgery.at, next(to for to, each in enumerate(forgery.records) if each is records[forgery.at])
    return records[at + 1 : to + 1] if to > at else records[to:at]


def _passes_no_decision(records: Sequence[Record], forgery: Forgery) -> bool:
    """It was moved past orders, checkpoints and plans that came to nothing; for orders and results arrivals too."""
    passed = _passed(records, forgery)
    kinds: tuple[type[Record], ...] = (Delivered, Checkpoint, Idled, Answered, AnswersClosed, TierTold)
    if isinstance(records[forgery.at], Delivered | StepCommitted):
        kinds += (Submitted,)
        passed = [each for each in passed if not isinstance(each, Transition) or each.event is not Event.SUBMIT]
    return all(isinstance(each, kinds) for each in passed)


def _drew_what_may_coincide(records: Sequence[Record], forgery: Forgery) -> bool:
    submitted: Any = records[forgery.at]
    return _mine(records, forgery).num_output <= 2 or bool(submitted.sampling.logit_bias)


def _neither_came(records: Sequence[Record], forgery: Forgery) -> bool:
    """The scheduler never heard of the request that is answered, nor of the one that the forgery names."""
    both: tuple[Any, Any] = records[forgery.at], forgery.changed
    lives = [life_of(records, each.request) for each in both]
    return all(life.cause is Cause.NONE for life in lives) and both[0].cause in ABORT_CAUSES and not both[0].num_output


def _concerns_stale_tokens(records: Sequence[Record], forgery: Forgery) -> bool:
    """Whoever the tokens that differ were drawn for has left."""
    history, forged = History(), forgery.changed
    for record in records[: forgery.at + 1]:
        history.advance(record)
    sound = records[forgery.at]
    if not isinstance(sound, StepCommitted) or not isinstance(forged, StepCommitted):
        return False
    counts = history.step.samples if sound.counts is None else int32s(sound.counts)
    live = np.repeat(history.committed.live, counts)
    before, after = int32s(sound.tokens), int32s(forged.tokens)
    return len(before) == len(after) and not live[before != after].any()


def _counts_one_each(records: Sequence[Record], forgery: Forgery) -> bool:
    """One token for each segment that draws, which is what no counts mean."""
    changed = forgery.changed
    return isinstance(changed, StepCommitted) and changed.counts is not None and int(int32s(changed.counts).max()) <= 1


def _changes_no_pause(records: Sequence[Record], forgery: Forgery) -> bool:
    """The engine is not paused, or plans no step before the next such order."""
    before = [each.kind for each in records[: forgery.at] if isinstance(each, Delivered)]
    paused = "pause" in before and "continue" not in before[len(before) - before[::-1].index("pause") :]
    return not paused or _plans_nothing(records, forgery)


def _nobody_runs(records: Sequence[Record], forgery: Forgery) -> bool:
    history = History()
    for record in records[: forgery.at]:
        history.advance(record)
    return not history.working.any()


def _passes_none_of_its(records: Sequence[Record], forgery: Forgery) -> bool:
    """Of the requests that it ends it is moved past nothing but their arrival."""
    named = _named(records[forgery.at])
    mine = [each for each in _passed(records, forgery) if getattr(each, "request", None) in named]
    return all(isinstance(each, Submitted) or getattr(each, "event", None) is Event.SUBMIT for each in mine)


def _nobody_is_left(records: Sequence[Record], forgery: Forgery) -> bool:
    """Whoever was live has ended by the orders that came at the same moment."""
    history = History()
    for at, record in enumerate(records):
        if at > forgery.at and not isinstance(record, Delivered | Transition | Answered | Cached):
            return not history.open
        history.advance(record)
    return True


def _plans_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    """Until the next order of its kind no step is planned."""
    order: Any = records[forgery.at]
    for each in records[forgery.at + 1 :]:
        if isinstance(each, Delivered) and each.kind == order.kind:
            return True
        if isinstance(each, StepPlanned):
            return False
    return True


def _named(record: Record | None) -> set[int]:
    fields = record.fields if isinstance(record, Delivered) else {}
    return {*fields.get("requests", ()), *({fields["request"]} if "request" in fields else ())}


def _never_came(records: Sequence[Record], forgery: Forgery) -> bool:
    return _mine(records, forgery).cause is Cause.NONE and _cause(forgery) in ABORT_CAUSES


def _answered_in_place(records: Sequence[Record], forgery: Forgery) -> bool:
    """It came at a time at which the engine stopped, or beside a failure: the gateway may answer for the scheduler."""
    answer: Any = records[forgery.at]
    orders = (each for each in records if isinstance(each, Delivered) and each.time <= answer.time)
    stopped = any(order.kind in ("drain", "end_all") for order in orders)
    failed = any(isinstance(each, Contained) for each in records)
    return (_cause(forgery) is Cause.DRAINED and stopped) or (_cause(forgery) is Cause.INTERNAL and failed)


def _may_be_cut(records: Sequence[Record], forgery: Forgery) -> bool:
    return _cause(forgery) is Cause.STOP_STRING or _answered_in_place(records, forgery)


def _cause(forgery: Forgery) -> Cause:
    changed = forgery.changed
    return changed.cause if isinstance(changed, Answered) else Cause.NONE


def _always(records: Sequence[Record], forgery: Forgery) -> bool:
    return True


class Reason(NamedTuple):
    """Why forgeries of some kinds leave no contradiction."""

    text: str
    holds: Condition = _always
    """Whether it is one of these."""


_WORDS = Reason("words for people, from which nothing follows")
_SETTING = Reason("a limit that nothing came near, or a choice that nothing depended on: all decisions are the same")
_AGAIN = Reason("an order that comes again, or a little earlier or later, changes nothing, as nothing came between")
_NO_EFFECT = Reason("an order about requests that have ended, or never come, changes nothing", _names_nobody_live)
_TIMER = Reason("a timer of the engine's own that found nothing to do")
_ASKER = Reason("who waits for an order's outcome: replies to control messages are not recorded")
_CLOCK = Reason("an input has its own time, and nothing else says when it came; only the order of times is bound")
_SAME_TOKENS = Reason("how a request draws: every token is computed again, and is the same with it")
_SAME_ORDER = Reason("who goes first: all decisions are made again, and are the same with it")
_ELSEWHERE = Reason("what a replica that was lost has done for a request is in its trace, and not in this one")
_TIERS = Reason("what a tier below the device keeps is its word alone; what is fetched from it shows")
_MOMENT = Reason("a checkpoint may be taken, and a plan come to nothing, at any moment without a step in flight")
_CUT = Reason("a text may be cut within the tokens that the scheduler counted; the client alone has it", _may_be_cut)
_STOPS = Reason("a token that the request did not draw", _ended_otherwise(Cause.EOS, Cause.STOP_TOKEN))
IN_PRINCIPLE: dict[str, tuple[Reason, ...]] = {
    **{
        f"*: {move}": (
            Reason("orders, checkpoints and plans that change nothing may stand elsewhere", _passes_no_decision),
        )
        for move in ("exchanged with the next", "moved later", "moved earlier")
    },
    "Answered.cause: another word": (
        Reason("why a request was refused on its way to the scheduler, which never heard of it", _never_came),
        Reason("the gateway answers for a scheduler that stops or has failed", _answered_in_place),
        _CUT,
    ),
    "Answered.num_output: *": (_CUT,),
    "Answered.request: one *": (
        Reason("who was refused on the way to the scheduler, which knows of nobody", _neither_came),
    ),
    "*.time: a bit *": (_CLOCK,),
    "*.time: of another record": (_CLOCK,),
    "Checkpoint: left out": (_MOMENT,),
    "Checkpoint: twice": (_MOMENT,),
    "Delivered *.fields[[]message]: another text": (_WORDS,),
    "Delivered *.number: *": (_ASKER,),
    "Delivered abort.fields[[]requests]: two exchanged": (_AGAIN,),
    "Delivered abort.fields[[]requests][[]n]: twice": (_AGAIN,),
    "Delivered abort.fields[[]*": (_NO_EFFECT,),
    "Delivered abort: *": (_NO_EFFECT,),
    "Delivered abort: moved *": (
        Reason("an abort may overtake its request, or follow it at once", _passes_none_of_its),
    ),
    "Delivered abort: twice": (_AGAIN,),
    "Delivered check_deadlines: *": (_TIMER,),
    "Delivered continue: *": (Reason("nobody waits for the engine to go on", _changes_no_pause),),
    "Delivered continue: twice": (_AGAIN,),
    "Delivered drain.fields[[]grace_s]: a bit *": (_CLOCK,),
    "Delivered drain: left out": (Reason("it refuses who comes after it, and nobody does", _nobody_came_after),),
    "Delivered drain: exchanged with the next": (_AGAIN,),
    "Delivered drain: moved *": (_AGAIN,),
    "Delivered drain: twice": (_AGAIN,),
    "Delivered end_all: left out": (Reason("nobody is left when the engine stops"),),
    "Delivered end_all: moved *": (_AGAIN,),
    "Delivered end_all: twice": (_AGAIN,),
    "Delivered finish.fields[[]*": (_NO_EFFECT,),
    "Delivered finish: *": (_NO_EFFECT,),
    "Delivered flush_cache.fields[[]timeout]: *": (_CLOCK,),
    "Delivered flush_cache: *": (Reason("a flush of nothing, or one that is refused, changes nothing"),),
    "Delivered pause.fields[[]retract]: negated": (Reason("nobody runs who could be retracted", _nobody_runs),),
    "Delivered pause: *": (Reason("an engine with nothing to do does not show that it pauses", _nobody_is_left),),
    "Delivered pause: twice": (_AGAIN,),
    "Delivered wait_ends: exchanged with the next": (_AGAIN,),
    "Idled: left out": (_MOMENT,),
    "Idled: twice": (_MOMENT,),
    **{
        f"Started.config[[]loop][[]{setting}]: *": (_SETTING,)
        for setting in (
            *("checkpoint_bytes", "lookahead", "max_context", "max_loaded_loras", "max_loras", "max_queued", "mixed"),
            *("num_window_pages", "stages", "remote][[]lease_s", "remote][[]max_pages"),
            *("prefill_chunk", "tiers][[]durable", "tiers][[]layout", "tiers][[]lease_s", "tiers][[]max_fetch_pages"),
            *("tiers][[]max_saving_pages", "tiers][[]save_pages", "weight_version", "weights", "window"),
            *("speculation][[]max_positions", "speculation][[]num_speculative_tokens"),
            *("speculation][[]prompt_lookup_max", "speculation][[]prompt_lookup_min"),
        )
    },
    "Started.config[[]replica]: *": (Reason("which of several replicas it was decides nothing"),),
    "Started.version: another text": (_WORDS,),
    "Started.wall: a bit *": (_WORDS,),
    "StepCommitted.counts: *": (Reason("one token each is what no counts mean", _counts_one_each),),
    "StepCommitted.tokens*": (Reason("tokens of requests that have left work are dropped", _concerns_stale_tokens),),
    "StepRolledBack.blameless: *": (Reason("nobody was part of two lost steps", _no_worker_lost),),
    "StepRolledBack.reason: *": (_WORDS,),
    "Submitted.deadline: *": (Reason("a deadline that did not pass", _ended_otherwise(Cause.TIMEOUT)),),
    "Submitted.namespace: *": (Reason("whose pages it would share, if it read any", _computed_nothing),),
    "Submitted.priority: *": (_SAME_ORDER,),
    "Submitted.deadline: a bit *": (_CLOCK,),
    "Submitted.rid: *": (_WORDS,),
    **{
        f"Submitted.sampling.{name}*: *": (_SAME_TOKENS,)
        for name in (
            *("frequency_penalty", "logit_bias", "min_new_tokens", "min_p", "presence_penalty", "repetition_penalty"),
            *("seed", "temperature", "top_k", "top_p"),
        )
    },
    "Submitted.sampling.embed: negated": (Reason("its prompt was not computed to the end", _computed_too_little),),
    "Submitted.sampling.eos_token_ids: *": (_STOPS,),
    "Submitted.sampling.token_ids_logprob*": (Reason("nothing was drawn that asked for any", _scores_nothing),),
    "Submitted.sampling.*_token_ids[[]n]: twice": (Reason("a set of tokens, whose order and repetition mean nothing"),),
    "Submitted.sampling.*_token_ids: two exchanged": (Reason("a set of tokens, whose order means nothing"),),
    "Submitted.sampling.max_new_tokens: *": (Reason("a limit that was not reached", _ended_otherwise(Cause.LENGTH)),),
    "Submitted.sampling.prompt_logprobs: negated": (Reason("the first token of a prompt has none", _computed_one),),
    "Submitted.sampling.stop_token_ids*": (_STOPS,),
    "Submitted.sampling.top_logprobs: *": (Reason("there was no token to give any for", _drew_nothing),),
    "Submitted.tokens*": (
        Reason("a few tokens, or those preferred, may follow another prompt", _drew_what_may_coincide),
    ),
    "TierTold filled.count: one *": (Reason("what came for requests that wait for it no more", _nobody_waited),),
    **{f"Submitted.{name}*": (_ELSEWHERE,) for name in ("num_cached", "num_older", "num_retractions", "output")},
    **{f"TierTold {kind}*": (_TIERS,) for kind in ("received", "overdue", "prefiller_up", "prefiller_down")},
    "TierTold dropped*": (_TIERS,),
    "TierTold kept*": (_TIERS,),
}
"""Kinds (with `*`) of which some forgeries leave no contradiction, and why."""


def cannot_show(records: Sequence[Record], forgery: Forgery) -> bool:
    """Whether no contradiction need be left in these `records`, which are sound, by the forgery."""
    reasons = (IN_PRINCIPLE[pattern] for pattern in IN_PRINCIPLE if fnmatchcase(str(forgery.kind), pattern))
    return any(reason.holds(records, forgery) for several in reasons for reason in several)
