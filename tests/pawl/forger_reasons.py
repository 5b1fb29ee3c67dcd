"""What no trace can show of the forger's kinds, each with the reason, and when the reason holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

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
    moved = records[forgery.at]
    if isinstance(moved, Delivered | StepCommitted | AdapterMoved):
        kinds += (Submitted,)
    if isinstance(moved, AdapterMoved):
        kinds += (WeightsMoved, WeightGroupMoved, Flushed, Cached)
        passed = [each for each in passed if not isinstance(each, Transition) or each.event is not Event.SUBMIT]
    if isinstance(moved, Delivered) and "lora_name" in moved.fields:
        others = [each for each in passed if isinstance(each, AdapterMoved) and each.name != moved.fields["lora_name"]]
        passed = [each for each in passed if each not in others]
    return all(isinstance(each, kinds) for each in passed)


def _joins_another(records: Sequence[Record], forgery: Forgery) -> bool:
    """It was moved beside another one: that is to leave it out here, and to have the other twice."""
    at = next(at for at, each in enumerate(forgery.records) if each is records[forgery.at])
    beside = forgery.records[max(at - 1, 0) : at] + forgery.records[at + 1 : at + 2]
    return any(isinstance(each, Idled) for each in beside)


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


def _nothing_came_of_it(records: Sequence[Record], forgery: Forgery) -> bool:
    """It was refused, or tells of what is over: nothing is recorded to have followed from it."""
    order: Any = records[forgery.at]
    rest = (each for each in records[forgery.at + 1 :] if not isinstance(each, Cached | Answered))
    kinds = next(kinds for word, kinds in _FOLLOWS.items() if word in order.kind)
    return not isinstance(next(rest, None), kinds)


_FOLLOWS: dict[str, tuple[type[Record], ...]] = {
    "memory": (MemoryMoved,),
    "adapter": (AdapterMoved,),
    "group": (WeightGroupMoved,),
    "parts": (WeightGroupMoved,),
    "weights": (WeightsMoved, WeightGroupMoved),
}
"""What may follow from an order, by a word of its kind."""


def _nobody_left(records: Sequence[Record], forgery: Forgery) -> bool:
    """The engine stops next."""
    rest = records[forgery.at + 1 :]
    return all(isinstance(each, Delivered | Answered | AnswersClosed | Closed) for each in rest)


def _not_named_again(records: Sequence[Record], forgery: Forgery) -> bool:
    """No later order about the group is done."""
    order: Any = records[forgery.at]
    later = ((at, each) for at, each in enumerate(records) if at > forgery.at and isinstance(each, Delivered))
    mine = [at for at, each in later if each.fields.get("group_name") == order.fields["group_name"]]
    return all(_nothing_came_of_it(records, forgery._replace(at=at)) for at in mine)


def _was_never_staged(records: Sequence[Record], forgery: Forgery) -> bool:
    """Its group is lost with it, the update fails, or the engine stops, before all of it has come."""
    after = records[forgery.at + 1]
    if isinstance(after, WeightGroupMoved) and after.target is GroupPhase.ABSENT:
        return True
    moves = [each for each in records[forgery.at + 1 :] if isinstance(each, WeightsMoved)]
    ends = next((at for at, each in enumerate(moves) if each.target is Weights.SERVING), len(moves))
    return all(each.event is not WeightEvent.STAGED for each in moves[:ends])


def _goes_on_from_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    """The turn has no parent, and no turn of its session is taken after it."""
    order: Any = records[forgery.at]
    return order.fields["parent"] is None and _no_turn_follows(records, forgery)


def _is_never_served(records: Sequence[Record], forgery: Forgery) -> bool:
    """Weights with the content that it tells have not come to serve."""
    order: Any = records[forgery.at]
    later = (each for each in records[forgery.at + 1 :] if isinstance(each, WeightsMoved))
    return all(each.fingerprint != order.fields["fingerprint"] for each in later)


def _never_served(records: Sequence[Record], forgery: Forgery) -> bool:
    """No weights of the name that it gives have come to serve."""
    order: Any = records[forgery.at]
    later = (each for each in records[forgery.at + 1 :] if isinstance(each, WeightsMoved))
    return all(each.version != order.fields["weight_version"] for each in later)


def _was_refused(records: Sequence[Record], forgery: Forgery) -> bool:
    """The turn is refused when it comes."""
    order: Any = records[forgery.at]
    mine = (each for each in records if isinstance(each, Transition) and each.request == order.fields["request"])
    return next((each.event is Event.ABORT and each.source is State.NEW for each in mine), True)


def _no_turn_follows(records: Sequence[Record], forgery: Forgery) -> bool:
    """No turn of the session is taken after it."""
    order: Any = records[forgery.at]
    name = order.fields.get("session", order.fields.get("session_id"))
    for at, each in enumerate(records[forgery.at + 1 :], forgery.at + 1):
        mine = isinstance(each, Delivered) and each.kind == "begin_turn" and each.fields["session"] == name
        if mine and not _was_refused(records, forgery._replace(at=at)):
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
_NOT_DONE = Reason("what was refused, or is told of what is over, changes nothing", _nothing_came_of_it)
_SOURCE = Reason("from where weights or an adapter come: what they are is recorded as a fingerprint of their content")
_REFUSED = Reason(
    "what a turn goes on from, where it is refused: its own tokens are recorded, and why is not", _was_refused
)
_ALONE = Reason("a turn that goes on from nothing, and from which nothing goes on", _goes_on_from_nothing)
_SESSION = Reason("a session of which no turn is taken from there on", _no_turn_follows)
_TAGS = Reason("a set of parts of memory, whose order and repetition mean nothing")
_SLOWER = Reason("a step may always be launched later than it could be: why it was is not recorded")
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
    "Delivered *.fields[[]message]: *": (_WORDS,),
    "Delivered *.number: *": (_ASKER,),
    **{
        f"Delivered {order}*": (_NOT_DONE,)
        for order in (
            *(
                "update_weights",
                "put_weights",
                "receive_weights",
                "weights_staged",
                "weights_swapped",
                "weights_failed",
            ),
            *("join_weight_group", "leave_weight_group", "group_met", "group_lost", "parts_received"),
            *("load_adapter", "unload_adapter", "adapter_loaded", "adapter_failed"),
            *("release_memory", "resume_memory", "memory_move_ended"),
        )
    },
    **{
        f"Delivered {order}: twice": (_AGAIN,)
        for order in (
            *("update_weights", "put_weights", "receive_weights", "join_weight_group", "leave_weight_group"),
            *("load_adapter", "unload_adapter", "release_memory", "resume_memory"),
            *("open_session", "close_session", "expire_session", "set_state", "slow_down"),
        )
    },
    **{
        f"Delivered {order}.fields[[]{name}]*: *": (_SOURCE,)
        for order, names in (
            ("update_weights", ("model_path", "load_format", "flush_cache")),
            ("receive_weights", ("names", "dtypes", "shapes", "load_format", "flush_cache", "torch_empty_cache")),
            ("put_weights", ("source",)),
            ("load_adapter", ("lora_path",)),
        )
        for name in names
    },
    "Delivered *.fields[[]abort_all_requests]: negated": (
        Reason("whom an exchange of weights ended is an order of its own"),
    ),
    "Delivered *.fields[[]weight_version]: *": (Reason("a name that no weights came to serve under", _never_served),),
    "Delivered *.fields[[]reason]: *": (_WORDS,),
    "Delivered *_weights.fields[[]last]: negated": (
        Reason("whether more was to come of weights of which not all came", _was_never_staged),
    ),
    "Delivered weights_staged.fields[[]fingerprint]: *": (
        Reason("the content of weights that never came to serve", _is_never_served),
    ),
    "Delivered join_weight_group.fields[[]group_name]: *": (
        Reason("the name of a group that no order names again", _not_named_again),
    ),
    "AdapterMoved: left out": (Reason("an engine may stop before it drops what nobody needs", _nobody_left),),
    **{
        f"Delivered join_weight_group.fields[[]{name}]: *": (Reason("where the engine meets a trainer, and how"),)
        for name in ("master_address", "master_port", "rank_offset", "world_size", "backend")
    },
    "Delivered load_adapter.fields[[]pinned]: negated": (Reason("that it may not leave a slot that nobody wanted"),),
    "Delivered release_memory.fields[[]timeout]: *": (_CLOCK,),
    "Delivered *_memory.fields[[]tags][[]n]: twice": (_TAGS,),
    "Delivered *_memory.fields[[]tags]: two exchanged": (_TAGS,),
    "Delivered memory_move_ended.fields[[]released][[]n]: twice": (_TAGS,),
    "Delivered memory_move_ended.fields[[]released]: two exchanged": (_TAGS,),
    "Delivered set_state*": (_SETTING,),
    "Delivered slow_down*": (_SLOWER,),
    "Delivered begin_turn.fields*": (_REFUSED, _ALONE),
    "Delivered begin_turn: left out": (_ALONE,),
    "Delivered begin_turn: moved *": (
        _ALONE,
        Reason("a turn that was refused might have been so before", _was_refused),
    ),
    "Delivered open_session*": (_SESSION,),
    "Delivered open_session.fields[[]capacity]: one *": (_SETTING,),
    "Delivered open_session.fields[[]timeout_s]: *": (_CLOCK,),
    "Delivered close_session*": (_SESSION,),
    "Delivered expire_session*": (_SESSION,),
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
    "Idled: moved *": (_MOMENT._replace(holds=_joins_another),),
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
