"""Defects of what a request is in another replica than the one that had it first, and of what its client is told."""

from __future__ import annotations

from pawl.actors.prefill_desk import PrefillDesk
from pawl.actors.routed import Routed
from pawl.actors.scheduler import Scheduler
from pawl.actors.text.stream import Stream
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.OUTPUTS, broken, resembles, what, edits)


ASKED = (
    _mutant(
        "priority_is_lost_elsewhere",
        "observability_conservation",
        "",
        "A request of a lost replica goes on with no priority.",
        Edit(Scheduler._submit, "message.priority, now", "0 if message.resumed else message.priority, now"),
    ),
    _mutant(
        "cached_tokens_are_lost_elsewhere",
        "observability_conservation",
        "",
        "A client whose replica was lost is told that nothing of its prompt was cached.",
        Edit(Routed.again, "cached_tokens=admitted.cached_tokens", "cached_tokens=0"),
    ),
    _mutant(
        "loss_of_a_replica_is_no_retraction",
        "observability_conservation",
        "",
        "A client is not told that its request lost its memory with its replica.",
        Edit(Routed.again, "num_retractions=self.num_lost", "num_retractions=0"),
    ),
    _mutant(
        "prefill_under_no_salt",
        "observability_conservation",
        "",
        "A prompt is computed elsewhere without its salt: nothing of it can be used, and others' pages are found.",
        Edit(PrefillDesk._begin, "namespace=message.salt", 'namespace=""'),
    ),
    _mutant(
        "last_score_of_a_prompt_is_missing",
        "retraction_transparency",
        "vllm 41411",
        "The log-probability of the last token of a prompt is left out, and with it those of all others.",
        Edit(Stream.add_prompt_scores, "self._num_prompt - scores.start - 1)", "self._num_prompt - scores.start - 2)"),
    ),
)
