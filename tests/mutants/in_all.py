"""Defects in whom an order ends that is to end all, in what a stop string is, and in how much may move at once."""

from __future__ import annotations

from pawl.actors.text.stop import StopMatcher
from pawl.loops.fetching import Fetching
from pawl.loops.orders.weights import RenameWeights, WeightsSwapped
from pawl.loops.remote_prefill import RemotePrefill
from pawl.loops.requests import Requests
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(group: Group, name: str, broken: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, group, broken, "", what, edits)


_LIVE = "live = tuple(intake.loop.table.row_of)"
_AT_WORK = (
    "live = tuple(r for r, row in intake.loop.table.row_of.items() if intake.loop.table.state_of(row).owns_memory)"
)
ALL = (
    _mutant(
        Group.LIFECYCLE,
        "drain_forgets_who_waits",
        "abort_is_total",
        "When the grace of a drain is over, only those at work are ended, and who waits is served.",
        Edit(
            Requests.drain,
            "for row in self.table.live_rows().tolist():",
            "for row in [each for each in self.table.live_rows().tolist() if self.table.state_of(each).owns_memory]:",
        ),
    ),
    _mutant(
        Group.LIFECYCLE,
        "exchange_ends_those_at_work_alone",
        "abort_is_total",
        "New weights that are to end all that is live end none, as nobody is at work once they are exchanged.",
        Edit(WeightsSwapped.apply, _LIVE, _AT_WORK),
    ),
    _mutant(
        Group.LIFECYCLE,
        "renaming_ends_those_at_work_alone",
        "abort_is_total",
        "Weights are renamed, which is to end all that is live, and who waits goes on under the new name.",
        Edit(RenameWeights.apply, _LIVE, _AT_WORK),
    ),
    _mutant(
        Group.LIFECYCLE,
        "stop_string_of_who_waits_is_ignored",
        "stop_semantics",
        "A stop string is found in the text of a request that has just lost its memory, and it is computed on.",
        Edit(
            Requests.finish,
            "if row is not None:",
            "if row is not None and self.table.state_of(row).owns_memory:",
        ),
    ),
    _mutant(
        Group.OUTPUTS,
        "stop_string_of_several_bytes_is_missed",
        "stop_semantics",
        "Only stop strings of which each character is a byte are looked for.",
        Edit(
            StopMatcher.push,
            "if (start := text.find(stop)) >= 0",
            "if stop.isascii() and (start := text.find(stop)) >= 0",
        ),
    ),
    _mutant(
        Group.CONTROL,
        "room_for_prefills_is_counted_in_tokens",
        "bounded_progress",
        "A prompt of more pages than may be on their way waits for room, which there never is.",
        Edit(
            RemotePrefill._consider,
            "len(missing) <= self.config.max_pages",
            "len(missing) <= self.config.max_pages * self.queues.memory.page_size + 1",
        ),
    ),
    _mutant(
        Group.CONTROL,
        "fetch_is_bounded_by_tokens",
        "limits_hold",
        "As many pages are fetched at once as tokens may be.",
        Edit(Fetching._consider, "self.config.max_fetch_pages)", "self.config.max_fetch_pages * memory.page_size)"),
    ),
)
