"""The weights that are served."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from pawl.actors.control_row import Answer, Facts, Row, Shown, Source, Who, plain
from pawl.actors.gathering import first_refusal
from pawl.actors.messages.control import Reply
from pawl.actors.messages.weights import UNEXCHANGED, UNREAD
from pawl.actors.weight_questions import NO_SUCH, CheckWeights, GetWeights
from pawl.gpu.ghost.weights import NAMES, GhostWeights
from pawl.gpu.step_runner import PARTS_LOST
from pawl.lifecycle.states import Cause
from pawl.lifecycle.weight_source import FromBytes, FromSharedMemory, SegmentName, SegmentSize
from pawl.loops.orders.weights import PutWeights, RenameWeights, UpdateWeights
from pawl.loops.versions import DEFAULT_VERSION, VersionName
from pawl.loops.weights import BUSY

if TYPE_CHECKING:
    from pawl.actors.gateway import Gateway

PATIENCE_S = 3600.0
"""How long to wait for an update. Large models are read for minutes."""

ON_DISK = {DEFAULT_VERSION: "ghost", "a": "ghost:a", "b": "ghost:b", "c": "ghost:c"}
SENT = {"p": "ghost:p+q", "r": "ghost:r+s"}
"""As tensors."""
BROADCAST = {"t": "ghost:t+u"}
"""By a trainer."""
AGAIN = {"again": "ghost", "anew": "ghost"}
"""Other names of the weights of the start."""
SOURCES = ON_DISK | SENT | BROADCAST | AGAIN
"""Of versions that simulated clients have served, the first one among them; a ghost says other things under each."""
NOWHERE = "nowhere"
NO_FILE, NO_GHOST = "no such file", "the ghost has no weights"
NO_WEIGHT, NO_FLOAT = "do not fit", "no floating-point number"
"""Of a real model in a ghost's place: it has no weights of a ghost."""
REFUSALS = (BUSY, UNREAD, UNEXCHANGED, PARTS_LOST)
"""Of weights that exist, and fit."""


def _drawn(source: Source) -> UpdateWeights | None:
    if not source.chance(0.3):
        return None
    name = source.pick((*ON_DISK, NOWHERE))
    path = ON_DISK.get(name, name)
    return UpdateWeights(model_path=path, weight_version=name, abort_all_requests=source.chance(0.2))


def _check(body: UpdateWeights, reply: Reply) -> str | None:
    if reply.ok:
        return "weights were served that do not exist" if body.model_path == NOWHERE else None
    if body.model_path != NOWHERE and not any(words in reply.message for words in (*REFUSALS, NO_FILE, NO_GHOST)):
        return f"the weights exist, and were refused: {reply.message}"
    return None if reply.message else "an update failed, and nobody said why"


UPDATE_WEIGHTS = Row(
    name="update-weights",
    message=UpdateWeights,
    who=Who.ADMIN,
    routes=("/update_weights_from_disk",),
    patience_s=PATIENCE_S,
    draw=_drawn,
    check=_check,
    proves="weight_epochs",
    ends=frozenset({Cause.CLIENT}),
)


class SendWeights(msgspec.Struct, frozen=True, kw_only=True, tag="send_weights", forbid_unknown_fields=True):
    """Serve other values for some of the weights, sent as the bytes of a safetensors file. They are verified and laid
    out beside those that serve, in one message or in several, and exchanged between two steps when the last one has
    come; all that was not sent stays as it is. A failure leaves the old weights, and drops what was kept."""

    safetensors: Annotated[
        bytes | None, msgspec.Meta(description="a safetensors file, in base64; or raw, as the whole body")
    ] = None
    shared_memory: Annotated[
        SegmentName | None, msgspec.Meta(description="a POSIX shared memory segment that begins with such a file")
    ] = None
    size: Annotated[SegmentSize | None, msgspec.Meta(description="bytes of the file in the segment")] = None
    last: Annotated[
        bool, msgspec.Meta(description="false: others of the same weight_version are to come, exchange nothing yet")
    ] = True
    weight_version: Annotated[
        VersionName | None, msgspec.Meta(description="what replies call the new weights; left out: as before")
    ] = None
    abort_all_requests: Annotated[
        bool, msgspec.Meta(description="end what is live at the exchange, rather than start it again")
    ] = False
    flush_cache: Annotated[
        bool, msgspec.Meta(description="either way the cache is emptied: what it has is of the old weights")
    ] = True
    load_format: Annotated[Literal["safetensors"] | None, msgspec.Meta(description="there is no other")] = None
    serialized_named_tensors: Annotated[Any, msgspec.Meta(description="SGLang's, a pickle: it is refused")] = None


PICKLED = (
    "serialized_named_tensors are pickles, which can run any code when they are opened: send the tensors as "
    "safetensors, safetensors.torch.save({name: tensor, ...}), in base64 as the field safetensors, or raw as the whole "
    "body with content type application/octet-stream and the other fields in the query"
)
NO_TENSORS = "send safetensors, or shared_memory with size"


def send(gateway: Gateway, body: SendWeights, answer: Answer) -> None:
    """Give the order for what was sent."""
    refusal = None
    if body.serialized_named_tensors is not None:
        refusal = PICKLED
    elif (body.safetensors is None) is (body.shared_memory is None) or (body.shared_memory is None) is not (
        body.size is None
    ):
        refusal = NO_TENSORS
    if refusal is not None:
        answer(Reply(0, False, refusal))
        return
    if body.safetensors is not None:
        tensors: FromBytes | FromSharedMemory = FromBytes(body.safetensors)
    else:
        tensors = FromSharedMemory(str(body.shared_memory), int(body.size or 0))
    order = PutWeights(
        source=tensors,
        last=body.last,
        weight_version=body.weight_version,
        abort_all_requests=body.abort_all_requests,
    )
    gateway.ask(order, answer, PATIENCE_S)


def _sent(source: Source) -> SendWeights | None:
    """All of a version; or a part that says nothing of it, and is not the last; or one that does not fit."""
    if not source.chance(0.2):
        return None
    version, kind = source.pick(tuple(SENT)), source.pick(("whole", "whole", "part", "misfit"))
    weights = GhostWeights.named(SENT[version] if kind == "whole" else "ghost:part+part")
    file = weights.file() if kind != "misfit" else weights.file().replace(b"ghost.second", b"ghost.secant")
    last = kind == "whole" or (kind == "misfit" and source.chance(0.5))
    return SendWeights(safetensors=file, last=last, weight_version=version)


def _check_sent(body: SendWeights, reply: Reply) -> str | None:
    fits = body.safetensors is not None and b"ghost.secant" not in body.safetensors
    if reply.ok:
        return None if fits else "weights were served that do not fit"
    if fits and not any(words in reply.message for words in (*REFUSALS, NO_WEIGHT, NO_FLOAT)):
        return f"the weights fit, and were refused: {reply.message}"
    return None if reply.message else "an update failed, and nobody said why"


PUT_WEIGHTS = Row(
    name="put-weights",
    message=PutWeights,
    body=SendWeights,
    at_gateway=send,
    raw="safetensors",
    who=Who.ADMIN,
    routes=("/update_weights_from_tensor",),
    patience_s=PATIENCE_S,
    draw=_sent,
    draws=2,
    check=_check_sent,
    proves="weight_epochs",
    ends=frozenset({Cause.CLIENT}),
)

# Drawn where all weights are those of the start: what simulated clients must get follows from names that they are told.
RENAME_WEIGHTS = Row(
    name="rename-weights",
    message=RenameWeights,
    who=Who.ADMIN,
    routes=("/update_weight_version",),
    ends=frozenset({Cause.CLIENT}),
)


def _show_values(reply: Reply, facts: Facts) -> Shown:
    """The numbers alone, as SGLang's clients expect them."""
    if reply.ok:
        return HTTPStatus.OK, reply.body if "name" in reply.body else reply.body["values"]
    return (HTTPStatus.NOT_FOUND if NO_SUCH in reply.message else HTTPStatus.BAD_REQUEST), plain(reply, facts)[1]


def _named(source: Source) -> GetWeights | None:
    return GetWeights(name=source.pick((*NAMES, NOWHERE))) if source.chance(0.1) else None


def _check_values(body: GetWeights, reply: Reply) -> str | None:
    """They are of a version that has been served as a whole."""
    if not reply.ok:
        return None if reply.message else "a weight was not shown, and nobody said why"
    served = [GhostWeights.named(source).tensors for source in SOURCES.values()]
    if reply.body["values"] not in [weights[body.name].astype(float).tolist() for weights in served]:
        return f"{body.name} is {reply.body['values']}, which nobody has had served"
    return None


GET_WEIGHTS = Row(
    name="get-weights",
    message=GetWeights,
    at_stager=True,
    # They serve the same weights, but for moments of an update.
    merge=first_refusal,
    reply=list[Any] | dict[str, Any],
    show=_show_values,
    who=Who.ADMIN,
    routes=("/get_weights_by_name",),
    methods=("POST", "GET"),
    patience_s=PATIENCE_S,
    draw=_named,
    check=_check_values,
    proves="weight_epochs",
)


def _merge_ranks(replies: Sequence[Reply]) -> Reply:
    """Of every replica all ranks."""
    ranks = [rank for reply in replies for rank in reply.body.get("ranks", [])]
    speaking = first_refusal(replies)
    return msgspec.structs.replace(speaking, body=speaking.body | ({"ranks": ranks} if ranks else {}))


def _checked(source: Source) -> CheckWeights | None:
    return CheckWeights(action=source.pick(("checksum", "snapshot"))) if source.chance(0.05) else None


def _check_checked(body: CheckWeights, reply: Reply) -> str | None:
    if not reply.ok:
        return f"weights that serve were not looked at: {reply.message}"
    ranks = reply.body.get("ranks", [{"checksums": None}])
    return "no weight has a digest" if any(rank["checksums"] == {} for rank in ranks) else None


CHECK_WEIGHTS = Row(
    name="check-weights",
    message=CheckWeights,
    at_stager=True,
    merge=_merge_ranks,
    who=Who.ADMIN,
    routes=("/weights_checker",),
    patience_s=PATIENCE_S,
    draw=_checked,
    check=_check_checked,
    proves="weight_epochs",
)
