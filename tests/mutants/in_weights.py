"""Defects of weights that come as tensors, and in parts."""

from __future__ import annotations

from pawl.actors.worker import Worker
from pawl.loops.orders.weights import PutWeights
from pawl.loops.weights import WeightKeeper
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.CONTROL, broken, resembles, what, edits)


WEIGHTS = (
    _mutant(
        "every_part_is_exchanged",
        "schedule_equivalence",
        "14178",
        "Each part of new weights computes as soon as it has come, beside others of the old ones.",
        Edit(PutWeights.apply, "last=self.last, parts=True", "parts=True"),
        Edit(PutWeights.apply, "self.source, self.last", "self.source, True"),
    ),
    _mutant(
        "failed_part_gives_its_name",
        "schedule_equivalence",
        "lightseekorg/tokenspeed 672",
        "A part that does not fit changes what the old weights are called to the name of the new ones.",
        Edit(
            WeightKeeper.failed,
            "self._move(WeightEvent.FAILED, now)",
            "self._move(WeightEvent.FAILED, now, msgspec.structs.replace(self.served, "
            "version=self.update.version or self.served.version))",
        ),
    ),
    _mutant(
        "old_copy_computes_on",
        "schedule_equivalence",
        "26032, 37266",
        "New weights are said to be served, and what was made of the old ones computes every step.",
        Edit(Worker._swap, "self.runner.swap(ticket)", "pass"),
    ),
    _mutant(
        "sent_weights_keep_the_old_fingerprint",
        "schedule_equivalence",
        "26792, lightseekorg/tokenspeed 1125",
        "Weights that came as tensors are taken for those before them, and what these have computed is read.",
        Edit(
            WeightKeeper.swapped,
            "update.version or self.served.version, update.fingerprint, update.source",
            "update.version or self.served.version, self.served.fingerprint "
            "if update.source == self.served.source else update.fingerprint, update.source",
        ),
        Edit(WeightKeeper.swapped, "lose_pages(loop, now)", "pass"),
    ),
)
