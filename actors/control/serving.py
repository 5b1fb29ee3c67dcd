"""Planning no steps for a while: by SGLang's names, and by vLLM's."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from pawl.actors.control.requests import AbortRequests, abort
from pawl.actors.control_row import Answer, Facts, Row, Shown, Source, Who, plain
from pawl.actors.messages.control import Reply
from pawl.lifecycle.machines.serving import Serving
from pawl.lifecycle.states import Cause
from pawl.loops.intake import Outcome
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.serving import Continue, Pause
from pawl.loops.recovery import FAILED_ORDER

if TYPE_CHECKING:
    from pawl.actors.gateway import Gateway
    from pawl.actors.scheduler import Scheduler

PATIENCE_S = 60.0
"""How long the steps in flight, or the pages that are on their way to a request, may take."""
ABORTED = "generation was paused"
NOT_WAITING = "waiting for requests is not offered: send mode keep, or mode abort"


class PauseGeneration(msgspec.Struct, frozen=True, tag="pause_generation", forbid_unknown_fields=True):
    """Run no steps until generation is continued; requests that arrive meanwhile wait."""

    mode: Annotated[
        Literal["abort", "retract", "in_place"],
        msgspec.Meta(
            description="abort: end all requests; retract: they give their memory back, and start again later from the"
            " tokens they have; in_place: they keep it"
        ),
    ] = "abort"


class PauseByVllm(msgspec.Struct, frozen=True, tag="pause_by_vllm", forbid_unknown_fields=True):
    """The same in vLLM's words, with a flush of the cache."""

    mode: Annotated[
        Literal["abort", "keep", "wait"],
        msgspec.Meta(description="abort: end all requests; keep: they go on later; wait: not offered"),
    ] = "abort"
    clear_cache: Annotated[bool, msgspec.Meta(description="empty the prefix cache; who is kept is retracted")] = True
    wait_for_inflight_requests: Annotated[bool, msgspec.Meta(description="not offered, as mode wait")] = False


class ContinueByVllm(msgspec.Struct, frozen=True, tag="continue_by_vllm", forbid_unknown_fields=True):
    """The same in vLLM's words."""


class IsPaused(msgspec.Struct, frozen=True, tag="is_paused", forbid_unknown_fields=True):
    """Whether generation is paused."""


class Told(msgspec.Struct, frozen=True):
    """In SGLang's words."""

    success: bool
    message: str
    status: str


class ToldByVllm(msgspec.Struct, frozen=True):
    """In vLLM's words."""

    status: str


class IsPausedReply(msgspec.Struct, frozen=True):
    """In vLLM's words."""

    is_paused: bool


def pause(gateway: Gateway, body: PauseGeneration, answer: Answer) -> None:
    """Pause first: so whoever is not named by the abort that follows waits, and owns nothing."""
    replies: dict[str, Reply] = {}
    needed = 1 + (body.mode == "abort")

    def told(what: str, reply: Reply) -> None:
        replies[what] = reply
        if len(replies) == needed:
            facts = {name: value for each in replies.values() for name, value in each.body.items()}
            first = next((each for each in replies.values() if not each.ok), replies["pause"])
            answer(msgspec.structs.replace(first, body=facts))

    gateway.paused = True
    gateway.ask(Pause(body.mode == "retract"), partial(told, "pause"), PATIENCE_S)
    if body.mode == "abort":
        try:
            abort(gateway, AbortRequests(abort_all=True, abort_message=ABORTED), partial(told, "abort"))
        except Exception as error:  # it is paused all the same, and who asked hears of both
            gateway.told_of(error, message="pause")
            told("abort", Reply(0, False, FAILED_ORDER))


def go_on(gateway: Gateway, body: Continue, answer: Answer) -> None:
    """Continue, and say so in `/health` from now on."""
    gateway.paused = False
    gateway.ask(Continue(), answer, PATIENCE_S)


def pause_by_vllm(gateway: Gateway, body: PauseByVllm, answer: Answer) -> None:
    """Pause in the mode that comes to the same, then flush."""
    if body.mode == "wait" or body.wait_for_inflight_requests:
        answer(Reply(0, False, NOT_WAITING))
        return
    mode: Literal["abort", "retract", "in_place"] = "abort"
    if body.mode == "keep":
        mode = "retract" if body.clear_cache else "in_place"

    def paused(reply: Reply) -> None:
        if reply.ok and body.clear_cache:
            gateway.ask(FlushCache(PATIENCE_S), answer, 2 * PATIENCE_S)
        else:
            answer(reply)

    pause(gateway, PauseGeneration(mode), paused)


def is_paused(scheduler: Scheduler, question: IsPaused) -> Outcome:
    """As the loop has it."""
    return Outcome(True, facts={"is_paused": scheduler.loop.serving is Serving.PAUSED})


def _told(reply: Reply, facts: Facts) -> Shown:
    if not reply.ok:
        return plain(reply, facts)
    return HTTPStatus.OK, {"success": True, "message": reply.message, "status": "ok"}


def _told_by_vllm(word: str, reply: Reply, facts: Facts) -> Shown:
    return (HTTPStatus.OK, {"status": word}) if reply.ok else plain(reply, facts)


def _drawn(source: Source) -> PauseGeneration | None:
    if not source.chance(0.12):
        return None
    mode: Literal["abort", "retract", "in_place"] = source.pick(("in_place", "retract", "abort"))
    return PauseGeneration(mode)


def _drawn_by_vllm(source: Source) -> PauseByVllm | None:
    if not source.chance(0.08):
        return None
    mode: Literal["abort", "keep"] = source.pick(("keep", "abort"))
    return PauseByVllm(mode, clear_cache=source.chance(0.7))


def _check(body: PauseGeneration, reply: Reply) -> str | None:
    pending = reply.body.get("num_pending", 0)
    if not reply.ok or pending:
        return f"it was not paused, or {pending} requests have not ended: {reply.message}"
    return None


def _check_flushed(body: PauseByVllm, reply: Reply) -> str | None:
    # Somebody else may have continued in between, and only then is the flush refused.
    paused = reply.body.get("paused", True)
    return f"it was not paused, or not flushed while it was: {reply.message}" if not reply.ok and paused else None


PAUSE = Row(
    name="pause",
    message=Pause,
    body=PauseGeneration,
    at_gateway=pause,
    reply=Told,
    show=_told,
    who=Who.ADMIN,
    routes=("/pause_generation",),
    patience_s=PATIENCE_S,
    draw=_drawn,
    check=_check,
    undone_by=Continue(),
    ends=frozenset({Cause.CLIENT}),
)

CONTINUE = Row(
    name="continue",
    message=Continue,
    at_gateway=go_on,
    reply=Told,
    show=_told,
    who=Who.ADMIN,
    routes=("/continue_generation",),
    patience_s=PATIENCE_S,
    draw=lambda source: Continue() if source.chance(0.03) else None,
    check=lambda body, reply: None if reply.ok else f"it was not continued: {reply.message}",
)

PAUSE_BY_VLLM = Row(
    name="pause (vLLM)",
    message=Pause,
    body=PauseByVllm,
    at_gateway=pause_by_vllm,
    reply=ToldByVllm,
    show=lambda reply, facts: _told_by_vllm("paused", reply, facts),
    who=Who.ADMIN,
    routes=("/pause",),
    command=False,
    patience_s=2 * PATIENCE_S,
    draw=_drawn_by_vllm,
    check=_check_flushed,
    proves="quiescent_flush",
    undone_by=Continue(),
    ends=frozenset({Cause.CLIENT}),
)

CONTINUE_BY_VLLM = Row(
    name="continue (vLLM)",
    message=Continue,
    body=ContinueByVllm,
    at_gateway=lambda gateway, body, answer: go_on(gateway, Continue(), answer),
    reply=ToldByVllm,
    show=lambda reply, facts: _told_by_vllm("resumed", reply, facts),
    who=Who.ADMIN,
    routes=("/resume",),
    command=False,
    patience_s=PATIENCE_S,
)

IS_PAUSED = Row(
    name="is-paused",
    message=IsPaused,
    look=is_paused,
    reply=IsPausedReply,
    show=lambda reply, facts: (HTTPStatus.OK, reply.body) if reply.ok else plain(reply, facts),
    routes=("/is_paused",),
    methods=("GET",),
)
