"""Defects of what lasts, of what is counted and told, and of the order in which things make way."""

from __future__ import annotations

from pawl.actors.askers import Askers
from pawl.actors.gateway import Gateway
from pawl.actors.present import Present
from pawl.actors.text.stop import StopMatcher
from pawl.actors.text.stream import Stream
from pawl.actors.tiers.store import TierStore
from pawl.loops.adapters import Adapters
from pawl.loops.requests import Requests
from pawl.memory.prefix.order import RankedOrder, RecencyOrder
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(group: Group, name: str, broken: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, group, broken, "", what, edits)


LASTING = (
    _mutant(
        Group.MEMORY,
        "used_last_leaves_first",
        "cache_as_stated",
        "What was let go of last is the first to leave the cache.",
        Edit(
            RecencyOrder.push,
            "newest, ring = self._ring.older, self._ring",
            "newest, ring = self._ring, self._ring.newer",
        ),
    ),
    _mutant(
        Group.MEMORY,
        "half_of_a_node_was_never_used",
        "cache_as_stated",
        "Where a cached prefix is cut in two, the half that is made counts as used by nobody.",
        Edit(RankedOrder.split, "rank.hits, rank.priority =", "rank.entry, rank.priority ="),
    ),
    _mutant(
        Group.MEMORY,
        "what_is_read_of_a_file_stays_there",
        "tiers_as_stated",
        "A page that is read from a file does not come into host memory: it is read from the disk each time.",
        Edit(TierStore.read, "self._host(key, data[count])", "pass"),
    ),
    _mutant(
        Group.CONTROL,
        "one_more_may_wait",
        "limits_hold",
        "One request more than may waits, before others are refused.",
        Edit(Requests._refusal, ">= self.limits.max_queued", "> self.limits.max_queued"),
    ),
    _mutant(
        Group.CONTROL,
        "adapter_used_last_makes_way",
        "adapter_references",
        "Of adapters that nobody needs, the one used last leaves its slot.",
        Edit(Adapters._slot_for, "min(unwanted, key", "max(unwanted, key"),
    ),
    _mutant(
        Group.CONTROL,
        "more_adapters_than_may_be_loaded",
        "adapter_references",
        "No adapter makes way for one more that is loaded.",
        Edit(Adapters.loaded, "self._make_room(now)", "pass"),
    ),
    _mutant(
        Group.CONTROL,
        "cut_tokens_are_not_counted_as_dropped",
        "observability_conservation",
        "Tokens that were drawn behind a stop string are in no count.",
        Edit(Requests.close, "    counters.dropped_tokens = dropped\n", ""),
    ),
    _mutant(
        Group.CONTROL,
        "joined_replica_has_the_limits_set_last",
        "limits_hold",
        "A replica that joins is told the limits that were set last, and not those that were set before.",
        Edit(Present.done, "SetState(**self._limits.given() | order.given())", "order"),
    ),
    _mutant(
        Group.CONTROL,
        "front_does_not_hear_that_memory_is_back",
        "released_is_still",
        "The front is told that released memory is resident again, and believes what it was told before.",
        Edit(Gateway.receive, "self.released = tags", "self.released = tags or self.released"),
    ),
    _mutant(
        Group.CONTROL,
        "pause_is_answered_a_step_early",
        "quiescent_flush",
        "Who waits for the steps in flight is told that they have come back when the last of them has not.",
        Edit(Askers.settled, "self._untold[0][0] < oldest", "self._untold[0][0] <= oldest"),
    ),
    _mutant(
        Group.OUTPUTS,
        "stop_string_is_cut_off_though_wanted",
        "stream_equals_result",
        "Who wants the stop string in the text does not get it.",
        Edit(StopMatcher.push, "end if self._include_stop else end + minus_length", "end + minus_length"),
    ),
    _mutant(
        Group.OUTPUTS,
        "stops_a_token_late",
        "stop_semantics",
        "Stop strings are looked for from one token later on than was asked for.",
        Edit(Stream.push, "self.num_output < self._min_tokens", "self.num_output <= self._min_tokens"),
    ),
)
