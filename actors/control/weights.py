"""The weights that are served."""

from __future__ import annotations

from pawl.actors.control_row import Row, Source, Who
from pawl.actors.messages.control import Reply
from pawl.actors.messages.weights import UNEXCHANGED, UNREAD
from pawl.lifecycle.states import Cause
from pawl.loops.orders.weights import RenameWeights, UpdateWeights
from pawl.loops.versions import DEFAULT_VERSION
from pawl.loops.weights import BUSY

PATIENCE_S = 3600.0
"""How long to wait for an update. Large models are read for minutes."""

SOURCES = {DEFAULT_VERSION: "ghost", "a": "ghost:a", "b": "ghost:b", "c": "ghost:c"}
"""Of versions that simulated clients have served, the first one among them; a ghost says other things under each."""
NOWHERE = "nowhere"
NO_FILE = "no such file"
"""Of a real model in a ghost's place: it has no weights of a ghost."""


def _drawn(source: Source) -> UpdateWeights | None:
    if not source.chance(0.3):
        return None
    name = source.pick((*SOURCES, NOWHERE))
    path = SOURCES.get(name, name)
    return UpdateWeights(model_path=path, weight_version=name, abort_all_requests=source.chance(0.2))


def _check(body: UpdateWeights, reply: Reply) -> str | None:
    if reply.ok:
        return "weights were served that do not exist" if body.model_path == NOWHERE else None
    known = (BUSY, UNREAD, UNEXCHANGED, NO_FILE)
    if body.model_path != NOWHERE and not any(words in reply.message for words in known):
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

# Not drawn: what simulated clients must get follows from the names that they are told.
RENAME_WEIGHTS = Row(
    name="rename-weights",
    message=RenameWeights,
    who=Who.ADMIN,
    routes=("/update_weight_version",),
    ends=frozenset({Cause.CLIENT}),
)
