"""Profiles of the worker's steps: by the names of SGLang, whose routes vLLM has as well."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from pawl.actors.control_row import Facts, Row, Shown, Source, Who, plain
from pawl.actors.gathering import WRONG_STATE, merged_of_ready
from pawl.actors.messages.control import Reply
from pawl.gpu.profiler import Activity, ProfileOptions, ProfileRefused, Stage, WrongState
from pawl.loops.intake import Outcome

if TYPE_CHECKING:
    from pawl.actors.worker import Worker

PATIENCE_S = 600.0
"""How long a profile may be written."""
MOST_STEPS = 1_000_000

Steps = (
    Annotated[int, msgspec.Meta(ge=0, le=MOST_STEPS)] | Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,6}\Z")] | None
)
"""Clients of SGLang send numbers as text, too."""
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class StartProfile(msgspec.Struct, frozen=True, kw_only=True, tag="start_profile", forbid_unknown_fields=True):
    """Profile steps with torch.profiler, and write a Chrome trace for each recording."""

    output_dir: Annotated[
        Annotated[str, msgspec.Meta(max_length=4096, pattern=r"^[^\x00]+$")] | None,
        msgspec.Meta(description="folder of the files; otherwise that of --profile-dir"),
    ] = None
    start_step: Annotated[Steps, msgspec.Meta(description="number of the first step that may be recorded")] = None
    num_steps: Annotated[
        Steps, msgspec.Meta(description="steps to record, by stage of each stage; otherwise until it is stopped")
    ] = None
    warmup: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=1000)],
        msgspec.Meta(description="steps before each recording during which the profiler runs already"),
    ] = 0
    repeat: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=100)],
        msgspec.Meta(description="recordings, one after the other; above 1 with num_steps"),
    ] = 1
    activities: Annotated[
        Annotated[list[Activity], msgspec.Meta(min_length=1, max_length=3)] | None,
        msgspec.Meta(description="CPU; GPU, where there is one; MEM: memory as well; otherwise CPU and GPU"),
    ] = None
    profile_by_stage: Annotated[
        bool, msgspec.Meta(description="steps that compute prompts and steps that do not, in files of their own")
    ] = False
    profile_stages: Annotated[
        Annotated[list[Stage], msgspec.Meta(min_length=1, max_length=2)] | None,
        msgspec.Meta(description="by stage: only these, prefill or decode"),
    ] = None
    with_stack: Annotated[bool | None, msgspec.Meta(description="where in Python each operator was called")] = None
    record_shapes: Annotated[bool | None, msgspec.Meta(description="shapes of operators' inputs")] = None
    profile_id: Annotated[FileName | None, msgspec.Meta(description="in the files' names; otherwise the time")] = None
    profile_prefix: Annotated[FileName | None, msgspec.Meta(description="what the files' names begin with")] = None
    merge_profiles: Annotated[
        bool, msgspec.Meta(description="all ranks in one file: there is one rank, so that each file is merged")
    ] = False


class StopProfile(msgspec.Struct, frozen=True, tag="stop_profile", forbid_unknown_fields=True):
    """Stop the profile that is under way, and write what it has."""


def start_profile(worker: Worker, body: StartProfile) -> Outcome:
    """From the next step on."""
    if body.repeat > 1 and body.num_steps is None:
        return Outcome(False, "repeat: send num_steps as well, or a recording never ends")
    if body.profile_stages and not body.profile_by_stage:
        return Outcome(False, "profile_stages: send profile_by_stage as well")
    num_steps = None if body.num_steps is None else int(body.num_steps)
    if num_steps == 0:
        return Outcome(False, "num_steps must be at least 1")
    try:
        folder = (worker.profiler.folder if body.output_dir is None else Path(body.output_dir)).expanduser()
    except RuntimeError as error:  # nobody has this home
        return Outcome(False, f"output_dir: {error}")
    identity = body.profile_id or f"{worker.context.wall():.6f}"
    options = ProfileOptions(
        folder=folder.absolute(),
        name="-".join(part for part in (body.profile_prefix, identity) if part),
        start_step=int(body.start_step or 0),
        num_steps=num_steps,
        warmup=body.warmup,
        repeat=body.repeat,
        stages=tuple(dict.fromkeys(body.profile_stages or ("prefill", "decode"))) if body.profile_by_stage else (),
        activities=tuple(dict.fromkeys(body.activities or ("CPU", "GPU"))),
        with_stack=bool(body.with_stack),
        record_shapes=bool(body.record_shapes),
    )
    try:
        worker.profiler.start(options)
    except (WrongState, ProfileRefused) as error:
        return refused(error)
    return Outcome(True, "Start profiling.", {"output_dir": str(options.folder), "profile_id": identity})


def stop_profile(worker: Worker, body: StopProfile) -> Outcome:
    """What is on the device belongs to it."""
    try:
        files = worker.profiler.stop()
    except (WrongState, ProfileRefused) as error:
        return refused(error)
    return Outcome(True, "Stop profiling.", {"files": [str(path) for path in files]})


def refused(error: Exception) -> Outcome:
    """What `shown` makes a 409 of, where it is the state that is wrong."""
    return Outcome(False, str(error), {WRONG_STATE: True} if isinstance(error, WrongState) else {})


def shown(reply: Reply, facts: Facts) -> Shown:
    """409 for what is right at another time."""
    status, body = plain(reply, facts)
    return (HTTPStatus.CONFLICT if body.pop(WRONG_STATE, False) else status), body


def _drawn(source: Source) -> StartProfile | None:
    if not source.chance(0.12):
        return None
    return StartProfile(
        num_steps=source.pick((1, 3, None)),
        start_step=source.pick((0, 0, 4)),
        warmup=source.pick((0, 0, 2)),
        profile_by_stage=source.chance(0.4),
    )


START_PROFILE = Row(
    name="start-profile",
    message=StartProfile,
    by_worker=start_profile,
    show=shown,
    who=Who.ADMIN,
    routes=("/start_profile",),
    patience_s=PATIENCE_S,
    draw=_drawn,
    check=lambda body, reply: None if reply.ok or WRONG_STATE in reply.body else f"not started: {reply.message}",
    proves="auxiliary_conservation",
)

STOP_PROFILE = Row(
    name="stop-profile",
    message=StopProfile,
    by_worker=stop_profile,
    merge=merged_of_ready,
    show=shown,
    who=Who.ADMIN,
    routes=("/stop_profile",),
    patience_s=PATIENCE_S,
    draw=lambda source: StopProfile() if source.chance(0.1) else None,
)
