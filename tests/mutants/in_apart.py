"""Defects of prefill and decode apart that public engines have had: prefills that nobody waits for, or that are waited
for in vain; pages that are not what they should be; and what is left of either."""

from __future__ import annotations

from pawl.actors.links import Links
from pawl.actors.prefill_desk import PrefillDesk
from pawl.actors.tiers.hand_over import Incoming, Outgoing
from pawl.actors.tiers.hand_over_client import HandOverClient
from pawl.loops.fetching import Fetching
from pawl.loops.remote_prefill import RemotePrefill
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.MEMORY, broken, resembles, what, edits)


def _lifecycle(name: str, broken: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.LIFECYCLE, broken, resembles, what, edits)


APART = (
    _lifecycle(
        "prefill_outlives_its_request",
        "abort_is_total",
        "28236; vllm 26012",
        "A request that is aborted while its prompt is computed elsewhere leaves that to go on.",
        Edit(RemotePrefill.left, "self._cancel(ticket)", "self._prefills.pop(ticket)"),
    ),
    _lifecycle(
        "prefill_outlives_its_lease",
        "abort_is_total",
        "28236; vllm 20139",
        "A prefill that is not waited for any more, as its lease has ended, goes on elsewhere.",
        Edit(RemotePrefill._give_up, "self._cancel(ticket)", "self._prefills.pop(ticket)"),
    ),
    _lifecycle(
        "cancelled_by_nobody",
        "abort_is_total",
        "8352, 27372",
        "A prefill replica forgets a prefill that nobody waits for, and its scheduler goes on with it.",
        Edit(PrefillDesk._cancel, "if numbers:", "if False:"),
    ),
    _lifecycle(
        "cancel_overtakes_its_prefill",
        "abort_is_total",
        "dynamo 14782",
        "What cancels a prefill comes before it, finds nothing to cancel, and the prefill begins after that.",
        Edit(HandOverClient.prefill, "asked, Lane.CONTROL)", "asked)"),
    ),
    _lifecycle(
        "death_of_a_prefill_replica_is_waited_out",
        "bounded_progress",
        "6215, 16903, 28651",
        "Who waits for a prefill replica that is gone waits until the lease ends.",
        Edit(RemotePrefill.prefiller_down, "self._give_up(gone, Cause.WORKER_LOST, now)", "pass"),
    ),
    _lifecycle(
        "dead_prefill_replica_is_asked",
        "bounded_progress",
        "16903",
        "A prefill replica that is gone is asked again.",
        Edit(RemotePrefill.prefiller_down, "self.ready.discard(prefiller)", "pass"),
    ),
    _lifecycle(
        "tickets_come_again",
        "legal_lifecycle",
        "26486, 40125",
        "Two prefills that are under way have one number: what comes for the one is taken for the other.",
        Edit(RemotePrefill._consider, "self._tickets += 1", "self._tickets = len(self._prefills) + 1"),
    ),
    _lifecycle(
        "who_waits_for_room_is_not_asked_again",
        "bounded_progress",
        "38164",
        "A prefill that has found no room below the device is not begun once another one has come.",
        Edit(
            RemotePrefill.turning,
            "if prefill.prefiller is None",
            "if prefill.prefiller is None and ticket == self._tickets",
        ),
    ),
    _lifecycle(
        "late_answer_is_an_error",
        "fault_isolation",
        "vllm 43226, 46240",
        "Pages that come when their request has been aborted meet an assertion.",
        Edit(RemotePrefill.received, "if prefill is None or prefill.prefiller is None:", "if False:"),
    ),
    _mutant(
        "sent_pages_stay_under_way",
        "auxiliary_conservation",
        "vllm 41269",
        "Pages that were sent to who does not wait any more count as under way for ever.",
        Edit(Outgoing.over, "del sent[number]", "pass"),
    ),
    _mutant(
        "link_is_lost_twice",
        "auxiliary_conservation",
        "",
        "Both sides of a link say that it is lost, and two attempts at another one begin.",
        Edit(Links._lost, "attempt = self._number()", "attempt = link.attempt"),
    ),
    _mutant(
        "checksum_is_not_compared",
        "read_after_commit",
        "39229",
        "A page that was damaged on its way is kept, and read.",
        Edit(Incoming.keep, " and checksum(key, place) == sums[at[key]]", ""),
    ),
    _mutant(
        "what_has_not_come_is_read",
        "read_after_commit",
        "30233; vllm 40364",
        "A fetch that brought some of its pages counts as one that brought all.",
        Edit(Fetching._arrived, "    if count:\n", "    if count:\n        count = len(fetch.keys)\n"),
    ),
    _mutant(
        "quarantine_has_no_end",
        "auxiliary_conservation",
        "vllm 46283",
        "Pages of a fetch that was given up are never free again.",
        Edit(Fetching.fenced, "self.memory.withdraw(fetch.reservation)", "pass"),
    ),
    _mutant(
        "prefix_that_is_there_is_not_skipped",
        "read_after_commit",
        "vllm 48758",
        "Pages that continue what the device has are counted from the beginning of the prompt.",
        Edit(Fetching._consider, "self._order(wish.keys[start : start + count],", "self._order(wish.keys[:count],"),
    ),
    _mutant(
        "lost_link_stays_lost",
        "auxiliary_conservation",
        "",
        "Two replicas that have lost each other are not linked again.",
        Edit(Links._lost, "self._actor.context.after(AGAIN_S, LinkAgain(attempt))", "pass"),
    ),
)
