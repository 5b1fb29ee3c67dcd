"""Memory that is given back to the system for a while: by SGLang's names, and by vLLM's."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from pawl.actors.control.serving import NOT_WAITING, PauseGeneration, go_on, pause
from pawl.actors.control.serving import PATIENCE_S as PAUSE_PATIENCE_S
from pawl.actors.control_row import Answer, Facts, Row, Shown, Source, Who
from pawl.actors.messages.control import Reply
from pawl.actors.messages.memory import UNMOVED
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.states import Cause
from pawl.loops.intake import Outcome
from pawl.loops.orders.memory import ReleaseMemory, ResumeMemory, Tags
from pawl.loops.orders.serving import Continue
from pawl.loops.residency import HELD, LIVE, MOVING, READING, UPDATING

if TYPE_CHECKING:
    from pawl.actors.gateway import Gateway
    from pawl.actors.scheduler import Scheduler

PATIENCE_S = 3600.0
"""How long it may take. Weights of large models are written and read for minutes."""


class SleepByVllm(msgspec.Struct, frozen=True, tag="sleep_by_vllm", forbid_unknown_fields=True):
    """Release all memory, in vLLM's words: who is live ends first, or goes on after waking up."""

    level: Annotated[
        Literal[1, 2], msgspec.Meta(description="1 and 2 are the same: weights come back on waking up after either")
    ] = 1
    mode: Annotated[
        Literal["abort", "keep", "wait"],
        msgspec.Meta(description="abort: end all requests; keep: they go on later; wait: not offered"),
    ] = "abort"


class WakeUpByVllm(msgspec.Struct, frozen=True, tag="wake_up_by_vllm", forbid_unknown_fields=True):
    """Resume memory, in vLLM's words."""

    tags: Tags = None


class IsSleeping(msgspec.Struct, frozen=True, tag="is_sleeping", forbid_unknown_fields=True):
    """Whether any memory is released."""


class IsSleepingReply(msgspec.Struct, frozen=True):
    """In vLLM's words."""

    is_sleeping: bool


class MemoryReply(msgspec.Struct, frozen=True):
    """What came of it, and all that is released now."""

    success: bool
    message: str
    released: tuple[MemoryTag, ...]


def sleep_by_vllm(gateway: Gateway, body: SleepByVllm, answer: Answer) -> None:
    """Pause, so that nobody is at work; release; and continue, which plans no step while memory is released."""
    if body.mode == "wait":
        answer(Reply(0, False, NOT_WAITING))
        return
    was_paused = False

    def known(reply: Reply) -> None:
        nonlocal was_paused
        # What would be refused anyway is, before anybody is paused or aborted for it.
        if not reply.ok:
            answer(reply)
        elif reply.body["moving"] or reply.body["updating"] or len(reply.body["released"]) == len(MemoryTag):
            gateway.ask(ReleaseMemory(), answer, PATIENCE_S)
        else:
            was_paused = gateway.paused
            pause(gateway, PauseGeneration("abort" if body.mode == "abort" else "retract"), paused)

    def paused(reply: Reply) -> None:
        if reply.ok:
            gateway.ask(ReleaseMemory(), released, PATIENCE_S)
        else:
            released(reply)

    def released(reply: Reply) -> None:
        if was_paused:
            answer(reply)
        else:
            go_on(gateway, Continue(), lambda continued: answer(reply))

    gateway.ask(IsSleeping(), known, PAUSE_PATIENCE_S)


def wake_up_by_vllm(gateway: Gateway, body: WakeUpByVllm, answer: Answer) -> None:
    """The order is SGLang's."""
    gateway.ask(ResumeMemory(body.tags), answer, PATIENCE_S)


def is_sleeping(scheduler: Scheduler, question: IsSleeping) -> Outcome:
    """As the loop has it."""
    memory, updating = scheduler.intake.memory, scheduler.intake.weights.updating
    told = {"moving": memory.move is not None, "updating": updating, **memory.facts}
    return Outcome(True, facts={"is_sleeping": bool(scheduler.loop.released), **told})


def _show(reply: Reply, facts: Facts) -> Shown:
    """409 for what cannot be done as things are; 500 where the worker has failed."""
    body: dict[str, Any] = {"success": reply.ok, "message": reply.message, **reply.body}
    conflict = body.pop("conflict", False)
    if reply.ok:
        return HTTPStatus.OK, body
    status = HTTPStatus.CONFLICT if conflict else HTTPStatus.INTERNAL_SERVER_ERROR
    if reply.message == NOT_WAITING:
        status = HTTPStatus.BAD_REQUEST
    return status, body | {"error": {"message": reply.message}}


def _show_sleeping(reply: Reply, facts: Facts) -> Shown:
    return (HTTPStatus.OK, {"is_sleeping": reply.body["is_sleeping"]}) if reply.ok else _show(reply, facts)


def _drawn_tags(source: Source) -> tuple[MemoryTag, ...] | None:
    tags = tuple(tag for tag in MemoryTag if source.chance(0.4))
    return tags or None


def _drawn(source: Source) -> ReleaseMemory | None:
    return ReleaseMemory(_drawn_tags(source), source.pick((0.0, 1.0))) if source.chance(0.15) else None


def _drawn_resume(source: Source) -> ResumeMemory | None:
    return ResumeMemory(_drawn_tags(source)) if source.chance(0.06) else None


def _check(body: msgspec.Struct, reply: Reply) -> str | None:
    """Refused only for a reason, and never while what is told contradicts it."""
    reasons = (LIVE, HELD, MOVING, READING, UPDATING, UNMOVED, "already released", "not currently released")
    if not reply.ok and not any(words in reply.message for words in reasons):
        return f"refused without a reason: {reply.message!r}"
    return None


RELEASE_MEMORY = Row(
    name="release-memory",
    message=ReleaseMemory,
    reply=MemoryReply,
    show=_show,
    who=Who.ADMIN,
    routes=("/release_memory_occupation",),
    patience_s=PATIENCE_S,
    draw=_drawn,
    check=_check,
    proves="released_is_still",
    undone_by=ResumeMemory(),
)

RESUME_MEMORY = Row(
    name="resume-memory",
    message=ResumeMemory,
    reply=MemoryReply,
    show=_show,
    who=Who.ADMIN,
    routes=("/resume_memory_occupation",),
    patience_s=PATIENCE_S,
    draw=_drawn_resume,
    check=_check,
    proves="released_is_still",
)

SLEEP_BY_VLLM = Row(
    name="sleep (vLLM)",
    message=ReleaseMemory,
    body=SleepByVllm,
    at_gateway=sleep_by_vllm,
    reply=MemoryReply,
    show=_show,
    who=Who.ADMIN,
    routes=("/sleep",),
    command=False,
    patience_s=PATIENCE_S + 3 * PAUSE_PATIENCE_S,
    draw=lambda source: SleepByVllm(mode=source.pick(("abort", "keep"))) if source.chance(0.06) else None,
    check=_check,
    proves="released_is_still",
    undone_by=ResumeMemory(),
    ends=frozenset({Cause.CLIENT}),
)

WAKE_UP_BY_VLLM = Row(
    name="wake-up (vLLM)",
    message=ResumeMemory,
    body=WakeUpByVllm,
    at_gateway=wake_up_by_vllm,
    reply=MemoryReply,
    show=_show,
    who=Who.ADMIN,
    routes=("/wake_up",),
    command=False,
    patience_s=PATIENCE_S,
)

IS_SLEEPING = Row(
    name="is-sleeping",
    message=IsSleeping,
    look=is_sleeping,
    reply=IsSleepingReply,
    show=_show_sleeping,
    routes=("/is_sleeping",),
    methods=("GET",),
)
