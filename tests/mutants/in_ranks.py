"""Defects of a group of ranks: whom it believes, and what ranks have when they are started again."""

from __future__ import annotations

from pawl.actors.stager import Stager
from pawl.actors.worker import Worker
from pawl.gpu.parallel.actions import RankActions
from pawl.gpu.parallel.group import RankGroup
from pawl.gpu.parallel.order import StepOrder
from pawl.gpu.parallel.pages import join_pages
from pawl.loops.orders.runner import RunnerGone
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.CONTROL, broken, "", what, edits)


RANKS = (
    _mutant(
        "a_switch_of_experts_is_not_compared",
        "one_decision_log",
        "By which map of experts a rank computes is no part of what it says it has applied: one that was told to "
        "switch, and has not, goes on computing with the others, which leave to it what it no longer has.",
        Edit(RankActions._step, "self.applied.told(frames)", "pass"),
    ),
    _mutant(
        "ranks_that_differ_are_believed",
        "one_decision_log",
        "Nobody compares what ranks have applied: one that has left out a step goes on computing with the others.",
        Edit(StepOrder._answers, "if differ(answers):", "if False:"),
    ),
    _mutant(
        "ranks_are_started_where_their_host_is_gone",
        "fault_isolation",
        "A group whose ranks had a host that is gone tries to start them there until there were enough tries: its "
        "replica, which is to be given up at once, computes nothing for minutes.",
        Edit(StepOrder._try_to_start, "except HostGone:", "except ZeroDivisionError:"),
    ),
    _mutant(
        "ranks_start_again_without_adapters",
        "read_after_commit",
        "Ranks that are started again have the model, and none of the adapters that requests go on to compute with.",
        Edit(RankGroup.restore, "self._adapters.items()", "()"),
    ),
    _mutant(
        "pages_of_ranks_lie_one_behind_another",
        "read_after_commit",
        "What ranks have of a page is not put together by heads, but as it came: whoever has another number of ranks "
        "reads the keys of other positions.",
        Edit(
            join_pages,
            "np.concatenate(of_stages, 1 + _LAYERS).reshape(len(blocks[0]), -1)",
            "np.concatenate(blocks, 1)",
        ),
    ),
    _mutant(
        "what_is_read_while_ranks_are_lost_is_refused",
        "fault_isolation",
        "An adapter that is read again while ranks are lost counts as one that cannot be read: who waits for it ends.",
        Edit(
            Stager._read, "if not isinstance(message, Stage) or not isinstance(message.source, FromTrainer):", "if 0:"
        ),
    ),
    _mutant(
        "ranks_lost_between_steps_are_nobody_s",
        "bounded_progress",
        "Ranks that are lost under a reading, with no step in flight, are not told of: the reading waits for a start "
        "that never comes.",
        Edit(Worker.receive, "self.context.send(self._names.scheduler, RunnerGone(), Lane.CONTROL)", "pass"),
    ),
    _mutant(
        "cache_survives_ranks_lost_between_steps",
        "read_after_commit",
        "What pages held of ranks that were lost with no step in flight is still offered to other requests.",
        Edit(RunnerGone.apply, "lose_runner(intake.loop, now)", "pass"),
    ),
)
