"""Defects of memory that is released and resumed."""

from __future__ import annotations

from pawl.actors.memory_client import MemoryClient
from pawl.loops.adapters import Adapters
from pawl.loops.loop import Loop
from pawl.loops.residency import MemoryKeeper, in_the_way, resident
from pawl.loops.weights import WeightKeeper
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.CONTROL, broken, resembles, what, edits)


RESIDENCY = (
    _mutant(
        "adapters_are_read_into_released_memory",
        "fault_isolation",
        "",
        "An adapter is read while the weights are released with which it goes, and cannot be.",
        Edit(Adapters.turning, "adapter.slot or self._loop.released", "adapter.slot"),
    ),
    _mutant(
        "memory_is_released_while_the_server_is_busy",
        "released_is_still",
        "24123, vllm 28714, 45520",
        "Weights are released under a step that is in flight, and while requests are at work.",
        Edit(in_the_way, "loop.in_flight or not (loop.still or loop.idle)", "False"),
    ),
    _mutant(
        "pages_come_back_with_a_stale_prefix_cache",
        "released_is_still",
        "vllm 17103, vllm-omni 6442",
        "The prefix cache still names pages whose bytes went with the memory.",
        Edit(MemoryKeeper.begin, "self._empty()", "pass"),
    ),
    _mutant(
        "what_is_resident_is_resumed_again",
        "released_is_still",
        "24123",
        "Memory is resumed that was not released, and that twice.",
        Edit(MemoryKeeper._refusal, "if wrong:", "if False:"),
        Edit(resident, "if tag in loop.released)", "if True)"),
    ),
    _mutant(
        "pages_of_who_is_paused_in_place_are_released",
        "released_is_still",
        "redai-studio/Relax 282",
        "Requests that a pause has left their pages lose them: the pages are released and the requests go on.",
        Edit(in_the_way, "not loop.queues.owns_nothing:", "False:"),
        Edit(MemoryKeeper._empty, "if not self._loop.memory.flush():", "if not self._loop.memory.flush() and False:"),
    ),
    _mutant(
        "steps_are_planned_while_memory_is_released",
        "released_is_still",
        "vllm 15483",
        "Requests that arrive while memory is released are computed with what is not there.",
        Edit(Loop.still, "or bool(self.released)", "or False"),
    ),
    _mutant(
        "one_part_that_is_resumed_counts_as_all",
        "released_is_still",
        "vllm 44483",
        "Steps go on when the weights are back, and the pages are not.",
        Edit(Loop.still, "or bool(self.released)", "or len(self.released) == 3"),
    ),
    _mutant(
        "memory_counts_as_resident_before_it_is",
        "released_is_still",
        "",
        "Steps go on from the order to resume, and not from when the worker has the memory again.",
        Edit(
            MemoryKeeper.begin,
            "self._num_moves, self.move = move.ticket, move",
            "self._num_moves, self.move = move.ticket, move\n"
            "    loop.released = loop.released.difference(tags if event is ResidencyEvent.RESUME else ())",
        ),
    ),
    _mutant(
        "who_resumes_memory_is_never_told",
        "bounded_progress",
        "",
        "The worker's answer is taken for that of another move: who asked waits for ever, and so do all requests.",
        Edit(MemoryKeeper.ended, "move.ticket != ticket", "move.ticket == ticket"),
    ),
    _mutant(
        "memory_stays_released_until_the_last_part_comes",
        "bounded_progress",
        "",
        "Resuming is refused as long as an update lacks its last part, which may never come: requests wait for ever.",
        Edit(WeightKeeper.updating, "self.phase in (Weights.STAGING, Weights.SWAPPING)", "self.update is not None"),
    ),
    _mutant(
        "a_failure_forgets_that_memory_was_to_move",
        "bounded_progress",
        "",
        "The worker is never told to release or resume.",
        Edit(MemoryClient.settled, "if move is not None and move.ticket != self._asked:", "if False:"),
    ),
    _mutant(
        "failed_resume_counts_as_done",
        "released_is_still",
        "",
        "Where the worker says that it could not resume memory, all that it was asked for counts as resident.",
        Edit(
            MemoryKeeper.ended,
            "[tag for tag in move.tags if tag not in released]",
            "[tag for tag in move.tags if message or tag not in released]",
        ),
    ),
)
