"""What no trace can show of the forger's kinds, each with the reason, and when the reason holds."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from pawl.lifecycle.records import Record
from pawl.lifecycle.states import Cause
from tests.pawl.forger import Forgery
from tests.pawl.forger_conditions import (
    Condition,
    always,
    answered_in_place,
    changes_no_pause,
    computed_nothing,
    computed_one,
    computed_too_little,
    concerns_stale_tokens,
    counts_one_each,
    did_not_stop_it,
    drew_nothing,
    drew_what_may_coincide,
    ended_otherwise,
    goes_on_from_nothing,
    is_never_served,
    joins_another,
    may_be_cut,
    names_nobody_live,
    neither_came,
    never_came,
    never_served,
    no_turn_follows,
    no_worker_lost,
    nobody_came_after,
    nobody_is_left,
    nobody_left,
    nobody_runs,
    nobody_waited,
    not_named_again,
    nothing_came_of_it,
    others_serve,
    passes_no_decision,
    passes_no_step,
    passes_none_of_its,
    scores_nothing,
    stands_still,
    was_never_staged,
    was_refused,
)


class Reason(NamedTuple):
    """Why forgeries of some kinds leave no contradiction."""

    text: str
    holds: Condition = always
    """Whether it is one of these."""


_WORDS = Reason("words for people, from which nothing follows")
_SETTING = Reason("a limit that nothing came near, or a choice that nothing depended on: all decisions are the same")
_AGAIN = Reason("an order that comes again, or a little earlier or later, changes nothing, as nothing came between")
_NO_EFFECT = Reason(
    "an order about requests that have ended, never come or are refused changes nothing", names_nobody_live
)
_TIMER = Reason("a timer of the engine's own that found nothing to do")
_ASKER = Reason("who waits for an order's outcome: replies to control messages are not recorded")
_CLOCK = Reason("an input has its own time, and nothing else says when it came; only the order of times is bound")
_SAME_TOKENS = Reason("how a request draws: every token is computed again, and is the same with it")
_SAME_ORDER = Reason("who goes first: all decisions are made again, and are the same with it")
_ELSEWHERE = Reason("what a replica that was lost has done for a request is in its trace, and not in this one")
_TIERS = Reason("what a tier below the device keeps is its word alone; what is fetched from it shows")
_MOMENT = Reason("a checkpoint may be taken, and a plan come to nothing, at any moment without a step in flight")
_CUT = Reason("a text may be cut within the tokens that the scheduler counted; the client alone has it", may_be_cut)
_NOT_DONE = Reason("what was refused, or is told of what is over, changes nothing", nothing_came_of_it)
_SOURCE = Reason("from where weights or an adapter come: what they are is recorded as a fingerprint of their content")
_REFUSED = Reason(
    "what a turn goes on from, where it is refused: its own tokens are recorded, and why is not", was_refused
)
_ALONE = Reason("a turn that goes on from nothing, and from which nothing goes on", goes_on_from_nothing)
_SESSION = Reason("a session of which no turn is taken from there on", no_turn_follows)
_TAGS = Reason("a set of parts of memory, whose order and repetition mean nothing")
_SLOWER = Reason("a step may always be launched later than it could be: why it was is not recorded")
_OTHER_WORDS = Reason("words that other weights drew than those of the start are not computed again", others_serve)
_STOPS = Reason("a token that the request did not draw", ended_otherwise(Cause.EOS, Cause.STOP_TOKEN))
IN_PRINCIPLE: dict[str, tuple[Reason, ...]] = {
    **{
        f"*: {move}": (
            Reason("orders, checkpoints and plans that change nothing may stand elsewhere", passes_no_decision),
        )
        for move in ("exchanged with the next", "moved later", "moved earlier")
    },
    "Answered.cause: another word": (
        Reason("why a request was refused on its way to the scheduler, which never heard of it", never_came),
        Reason("the gateway answers for a scheduler that stops or has failed", answered_in_place),
        _CUT,
    ),
    "Answered.num_output: *": (_CUT,),
    "Answered.request: one *": (
        Reason("who was refused on the way to the scheduler, which knows of nobody", neither_came),
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
            *("load_adapter", "load_numbered_adapter", "unload_adapter", "adapter_loaded", "adapter_failed"),
            *("release_memory", "resume_memory", "memory_move_ended", "runner_gone"),
        )
    },
    **{
        f"Delivered {order}: twice": (_AGAIN,)
        for order in (
            *("update_weights", "put_weights", "receive_weights", "join_weight_group", "leave_weight_group"),
            *("load_adapter", "load_numbered_adapter", "unload_adapter", "release_memory", "resume_memory"),
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
            ("load_numbered_adapter", ("lora_path",)),
        )
        for name in names
    },
    "Delivered *.fields[[]abort_all_requests]: negated": (
        Reason("whom an exchange of weights ended is an order of its own"),
    ),
    "Delivered *.fields[[]weight_version]: *": (Reason("a name that no weights came to serve under", never_served),),
    "Delivered *.fields[[]reason]: *": (_WORDS,),
    "Delivered *_weights.fields[[]last]: negated": (
        Reason("whether more was to come of weights of which not all came", was_never_staged),
    ),
    "Delivered weights_staged.fields[[]fingerprint]: *": (
        Reason("the content of weights that never came to serve", is_never_served),
    ),
    "Delivered join_weight_group.fields[[]group_name]: *": (
        Reason("the name of a group that no order names again", not_named_again),
    ),
    "AdapterMoved: left out": (Reason("an engine may stop before it drops what nobody needs", nobody_left),),
    **{
        f"Delivered join_weight_group.fields[[]{name}]: *": (Reason("where the engine meets a trainer, and how"),)
        for name in ("master_address", "master_port", "rank_offset", "world_size", "backend")
    },
    "Delivered load_*adapter.fields[[]pinned]: negated": (Reason("that it may not leave a slot that nobody wanted"),),
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
        Reason("a turn that was refused might have been so before", was_refused),
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
        Reason("an abort may overtake its request, or follow it at once", passes_none_of_its),
    ),
    "Delivered abort: twice": (_AGAIN,),
    "Delivered check_deadlines: *": (_TIMER,),
    "Delivered continue: *": (Reason("nobody waits for the engine to go on", changes_no_pause),),
    "Delivered continue: twice": (_AGAIN,),
    "Delivered continue: moved *": (Reason("nothing was planned where it was and where it is", passes_no_step),),
    "Delivered drain.fields[[]grace_s]: a bit *": (_CLOCK,),
    "Delivered drain: left out": (Reason("it refuses who comes after it, and nobody does", nobody_came_after),),
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
    "Delivered pause.fields[[]retract]: negated": (Reason("nobody runs who could be retracted", nobody_runs),),
    "Delivered pause: *": (
        Reason("an engine with nothing to do does not show that it pauses", nobody_is_left),
        Reason("an engine that waits for weights or memory stands still without a pause", stands_still),
    ),
    "Delivered pause: twice": (_AGAIN,),
    "Delivered wait_ends: exchanged with the next": (_AGAIN,),
    "Delivered wait_ends: left out": (_TIMER,),
    "Delivered wait_ends: moved *": (_TIMER,),
    "Idled: left out": (_MOMENT,),
    "Idled: twice": (_MOMENT,),
    "Idled: moved *": (_MOMENT._replace(holds=joins_another),),
    **{
        f"Started.config[[]loop][[]{setting}]: *": (_SETTING,)
        for setting in (
            *(
                "checkpoint_bytes",
                "lookahead",
                "max_context",
                "max_loaded_loras",
                "max_loras",
                "max_queued",
                "max_step_s",
                "mixed",
            ),
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
    "StepCommitted.counts: *": (Reason("one token each is what no counts mean", counts_one_each),),
    "StepCommitted.tokens*": (
        Reason("tokens of requests that have left work are dropped", concerns_stale_tokens),
        _OTHER_WORDS,
    ),
    **{f"StepCommitted.{name}*": (_OTHER_WORDS,) for name in ("scores", "embedded")},
    "StepRolledBack.blameless: *": (Reason("nobody was part of two lost steps", no_worker_lost),),
    "StepRolledBack.reason: *": (_WORDS,),
    "Submitted.deadline: *": (Reason("a deadline that did not pass", ended_otherwise(Cause.TIMEOUT)),),
    "Submitted.namespace: *": (Reason("whose pages it would share, if it read any", computed_nothing),),
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
    "Submitted.sampling.embed: negated": (Reason("its prompt was not computed to the end", computed_too_little),),
    "Submitted.sampling.eos_token_ids*: *": (_STOPS,),
    "Submitted.sampling.token_ids_logprob*": (Reason("nothing was drawn that asked for any", scores_nothing),),
    "Submitted.sampling.*_token_ids[[]n]: twice": (Reason("a set of tokens, whose order and repetition mean nothing"),),
    "Submitted.sampling.*_token_ids: two exchanged": (Reason("a set of tokens, whose order means nothing"),),
    "Submitted.sampling.max_new_tokens: *": (Reason("a limit that was not reached", ended_otherwise(Cause.LENGTH)),),
    "Submitted.sampling.prompt_logprobs: negated": (Reason("the first token of a prompt has none", computed_one),),
    "Submitted.sampling.stop_token_ids*": (_STOPS, _STOPS._replace(holds=did_not_stop_it)),
    "Submitted.sampling.grammar*": (
        Reason("a grammar with which nothing was drawn", drew_nothing),
        Reason("a few tokens may fit another grammar", drew_what_may_coincide),
    ),
    "Submitted.sampling.top_logprobs: *": (Reason("there was no token to give any for", drew_nothing),),
    "Submitted.tokens*": (
        Reason("a few tokens, or those preferred, may follow another prompt", drew_what_may_coincide),
        _OTHER_WORDS,
    ),
    "TierTold filled.count: one *": (Reason("what came for requests that wait for it no more", nobody_waited),),
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
