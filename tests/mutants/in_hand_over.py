"""Defects of prefill and decode apart: pages under other names, and what is left of a prefill that nobody waits for."""

from __future__ import annotations

from pawl.actors.prefill_desk import PrefillDesk
from pawl.actors.storage import Storage
from pawl.actors.tiers.hand_over import Outgoing
from pawl.actors.tiers.hand_over_client import HandOverClient
from pawl.loops.admission import Admission
from pawl.loops.handing_over import HandingOver
from pawl.loops.remote_prefill import RemotePrefill
from pawl.memory.tiers.host import HostPool
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.MEMORY, broken, resembles, what, edits)


HAND_OVER = (
    _mutant(
        "pages_are_handed_under_each_others_names",
        "read_after_commit",
        "22716",
        "A prefill replica sends several pages and names them in another order.",
        Edit(
            Outgoing._send,
            "self._hand(job, tuple(keys), checksums(keys, ",
            "self._hand(job, tuple(keys[::-1]), checksums(keys[::-1], ",
        ),
    ),
    _mutant(
        "place_of_a_damaged_page_is_lost",
        "observability_conservation",
        "",
        "A place in host memory is never free again, where a page of another replica was to be made that came damaged.",
        Edit(HostPool.settle, "self._free.append(row)", "pass"),
    ),
    _mutant(
        "row_stays_decided",
        "auxiliary_conservation",
        "",
        "That a prompt need not go elsewhere is remembered of the row, and the next request in it stays here as well.",
        Edit(RemotePrefill.left, "self._decided.discard(row)", "pass"),
    ),
    _mutant(
        "desk_keeps_what_has_ended",
        "auxiliary_conservation",
        "vllm 26012",
        "The desk of a prefill replica keeps each prefill for ever, to be cancelled.",
        Edit(PrefillDesk._ended, "number not in requests", "True"),
    ),
    _mutant(
        "expected_for_ever",
        "auxiliary_conservation",
        "vllm 46283",
        "The storage of a decode replica is not told that nobody waits for a prefill any more.",
        Edit(HandOverClient.cancel, "send(names.storage, Unexpect(ticket), Lane.CONTROL)", "pass"),
    ),
    _mutant(
        "what_was_computed_elsewhere_is_called_cached",
        "retraction_transparency",
        "vllm 46357",
        "A client is told that pages were cached which a prefill replica has computed for this very request.",
        Edit(Admission._try, "min(granted.num_cached, info.most_cached)", "granted.num_cached"),
    ),
    _mutant(
        "what_the_other_cache_had_is_not_told",
        "observability_conservation",
        "",
        "A prefill replica does not say how much of a prompt its own cache had.",
        Edit(HandingOver.left, "info.num_cached", "0"),
    ),
    _mutant(
        "gone_before_it_was_saved",
        "observability_conservation",
        "",
        "A page that could not be read for its receiver is told as gone, and after that as saved.",
        Edit(Storage._keep, "self.outgoing.pump()", "self.outgoing.pump(); self._tell_dropped()"),
    ),
)
