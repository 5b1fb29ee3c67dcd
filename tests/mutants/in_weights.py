"""Defects of weights that come as tensors, in parts, and from a trainer."""

from __future__ import annotations

from pawl.actors.weight_groups import WeightGroups
from pawl.actors.worker import Worker
from pawl.loops.orders.weight_groups import ReceiveWeights
from pawl.loops.orders.weights import PutWeights
from pawl.loops.weight_groups import GroupKeeper
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
    _mutant(
        "half_of_a_broadcast_is_served",
        "schedule_equivalence",
        "sgl-project/sglang-omni 784, lightseekorg/tokenspeed 1373",
        "What a trainer had sent when it went away is taken for all that it was to send.",
        Edit(WeightGroups._done, "if refusal:", "if refusal and not group.ticket:"),
    ),
    _mutant(
        "weights_are_staged_before_they_have_come",
        "weight_groups",
        "lightseekorg/tokenspeed 1373",
        "New weights are laid out as soon as somebody says that a trainer sends them.",
        Edit(
            ReceiveWeights.apply,
            "return LATER",
            "intake.stage(update.ticket, FromTrainer(), self.last)\n    return LATER",
        ),
    ),
    _mutant(
        "trainer_is_waited_for_for_ever",
        "bounded_progress",
        "4096, huggingface/trl 6797",
        "Who waits for a trainer that does not come is never told.",
        Edit(WeightGroups.receive, "self._lose(number, LATE.format(self._trainers.limit_s))", "pass"),
    ),
    _mutant(
        "group_that_was_left_lives_on",
        "auxiliary_conservation",
        "InternLM/lmdeploy 4638, 9979",
        "The engine leaves a group, and what was in it for the engine stays.",
        Edit(WeightGroups.receive, "if number not in numbers", "if False"),
    ),
    _mutant(
        "second_joining_takes_the_name",
        "bounded_progress",
        "huggingface/trl 3408",
        "Joining a group under a name that is taken forgets who joins, or has joined, under it.",
        Edit(GroupKeeper.join, "if place.group in self.groups:", "if False:"),
    ),
)
