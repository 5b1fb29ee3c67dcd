"""Which experts tokens use: by SGLang's names."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from pawl.actors.control.profiling import refused, shown
from pawl.actors.control_row import Row, Source, Who
from pawl.actors.expert_recorder import NoExperts, encoded
from pawl.actors.gathering import merged, merged_of_ready
from pawl.actors.messages.control import Reply
from pawl.gpu.profiler import ProfileRefused, WrongState
from pawl.loops.intake import Outcome

if TYPE_CHECKING:
    from pawl.actors.worker import Worker


class StartExpertRecord(msgspec.Struct, frozen=True, tag="start_expert_record", forbid_unknown_fields=True):
    """Count from the next step on, and from nothing, how many tokens use each expert of each layer."""


class StopExpertRecord(msgspec.Struct, frozen=True, tag="stop_expert_record", forbid_unknown_fields=True):
    """Count no more; what was counted stays to be taken."""


class DumpExpertRecord(msgspec.Struct, frozen=True, tag="dump_expert_record", forbid_unknown_fields=True):
    """Take what was counted since the start, or since it was taken last: as the reply, and as a file of JSON beside the
    profiles."""


class RebalanceExperts(msgspec.Struct, frozen=True, tag="rebalance_experts", forbid_unknown_fields=True):
    """Move experts between the ranks that share them out, by what tokens have used since the last time, so that no rank
    waits long for another. Requests go on, and get what they would have got."""


def start(worker: Worker, message: StartExpertRecord) -> Outcome:
    """See `ExpertRecorder.start`."""
    try:
        worker.experts.start()
    except (NoExperts, WrongState) as error:
        return refused(error)
    return Outcome(True, "Start recording the expert distribution.")


def stop(worker: Worker, message: StopExpertRecord) -> Outcome:
    """See `ExpertRecorder.stop`."""
    try:
        worker.experts.stop()
    except (NoExperts, WrongState) as error:
        return refused(error)
    return Outcome(True, "Stop recording the expert distribution.")


def dump(worker: Worker, message: DumpExpertRecord) -> Outcome:
    """The counts are in the reply also where the file cannot be written."""
    try:
        record = worker.experts.take()
    except (NoExperts, WrongState) as error:
        return refused(error)
    whose = f"_{worker.profiler.rank}" if worker.profiler.rank else ""
    path = worker.profiler.folder / f"expert_distribution_recorder_{worker.context.wall():.6f}{whose}.json"
    try:
        worker.profiler.tracer.save(path, encoded(record))
    except (OSError, ProfileRefused) as error:
        return Outcome(False, f"{path} cannot be written: {error}", record)
    return Outcome(True, "Dump expert distribution record.", record | {"file": str(path)})


def _check_dump(body: DumpExpertRecord, reply: Reply) -> str | None:
    """Each token has as many experts as the model says, in each layer that has some."""
    if "logical_count" not in reply.body or reply.body["failed_steps"]:
        return None
    has, each = set(reply.body["layers_with_experts"]), reply.body["num_tokens"] * reply.body["num_experts_per_token"]
    sums = [sum(counts) for counts in reply.body["logical_count"]]
    wanted = [each if index in has else 0 for index in range(len(sums))]
    return f"experts of layers were used {sums} times, and {wanted} is right" if sums != wanted else None


def _drawn(kind: type[msgspec.Struct], share: float, source: Source) -> msgspec.Struct | None:
    return kind() if source.chance(share) else None


def _check_moves(body: RebalanceExperts, reply: Reply) -> str | None:
    """Some are moved to where no rank has more to do, or none are and a reason is there."""
    if "layers" not in reply.body:
        return None if reply.message else "no experts were moved, and nobody said why"
    before, after = reply.body["imbalance_before"], reply.body["imbalance_after"]
    return f"experts were moved from an imbalance of {before} to {after}" if after >= before else None


START_EXPERTS = Row(
    name="start-expert-record",
    message=StartExpertRecord,
    by_worker=start,
    show=shown,
    who=Who.ADMIN,
    routes=("/start_expert_distribution_record",),
    patience_s=600.0,
    draw=lambda source: _drawn(StartExpertRecord, 0.15, source),
)

STOP_EXPERTS = Row(
    name="stop-expert-record",
    message=StopExpertRecord,
    by_worker=stop,
    show=shown,
    who=Who.ADMIN,
    routes=("/stop_expert_distribution_record",),
    patience_s=600.0,
    draw=lambda source: _drawn(StopExpertRecord, 0.1, source),
    merge=merged_of_ready,
)

DUMP_EXPERTS = Row(
    name="dump-expert-record",
    message=DumpExpertRecord,
    by_worker=dump,
    show=shown,
    who=Who.ADMIN,
    routes=("/dump_expert_distribution_record",),
    patience_s=600.0,
    draw=lambda source: _drawn(DumpExpertRecord, 0.2, source),
    check=_check_dump,
    merge=partial(merged_of_ready, counts=("num_tokens", "failed_steps", "logical_count")),
    proves="auxiliary_conservation",
)

REBALANCE_EXPERTS = Row(
    name="rebalance-experts",
    message=RebalanceExperts,
    at_stager=True,
    who=Who.ADMIN,
    routes=("/rebalance_experts",),
    patience_s=1800.0,
    draw=lambda source: _drawn(RebalanceExperts, 0.2, source),
    check=_check_moves,
    merge=partial(merged, counts=("moved_experts", "layers")),
)
