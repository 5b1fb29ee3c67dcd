"""Defects of control: flushes, decisions, counters, events."""

from __future__ import annotations

from pawl.actors.asks import Asks
from pawl.actors.open_requests import OpenRequests
from pawl.actors.runtime.cell import Cell
from pawl.actors.scheduler import Scheduler
from pawl.actors.simulation.cell import SimulatedCell
from pawl.actors.storage import Storage
from pawl.actors.weight_client import WeightClient
from pawl.actors.worker import Worker
from pawl.loops.intake import Intake
from pawl.loops.loop import Loop
from pawl.loops.policy import FirstComeFirstServed
from pawl.loops.recovery import undo_newest
from pawl.loops.requests import Requests
from pawl.loops.weights import WeightKeeper
from pawl.memory.memory import Memory
from pawl.memory.prefix.radix import RadixCache
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.CONTROL, broken, resembles, what, edits)


CONTROL = (
    _mutant(
        "flush_while_a_step_is_in_flight",
        "quiescent_flush",
        "14062, 31962",
        "The cache is emptied whenever somebody asks, whatever is running.",
        Edit(Loop.flush, "if not self.at_rest or not self.memory.flush():", "if not self.memory.flush():"),
        Edit(Memory.flush, "if self.slots.in_use.any() or self.ledger.num_in_flight:", "if False:"),
    ),
    _mutant(
        "flush_that_waits_is_forgotten",
        "quiescent_flush",
        "12107",
        "Who waits for the engine to rest before a flush is never told anything.",
        Edit(Intake.turn, "if order.can_be_done(self.loop):", "if False:"),
        Edit(Intake.deliver, "self.remind(patience_s, WaitEnds(number))", "pass"),
    ),
    _mutant(
        "flush_is_not_counted_below",
        "observability_conservation",
        "",
        "The storage empties host memory and goes on counting flushes as before: pages that come there afterwards are "
        "taken for some of before.",
        Edit(Storage._empty, "self.era = era", "pass"),
    ),
    _mutant(
        "timer_of_an_answered_question_runs_on",
        "auxiliary_conservation",
        "",
        "The timer of a question runs on when the answer has come.",
        Edit(Asks._close, "self._pending[ticket].timer.cancel()", "pass"),
    ),
    _mutant(
        "order_by_what_is_not_recorded",
        "one_decision_log",
        "27221",
        "The order of admission depends on stop strings, which no record has: a replay decides otherwise.",
        Edit(
            FirstComeFirstServed.order,
            "return rows",
            'return sorted(rows, key=lambda row: not getattr(waiting.table.info(row).passthrough, "stop", ()))',
        ),
    ),
    _mutant(
        "steps_from_before_the_reset_are_run",
        "one_decision_log",
        "34572",
        "A step that was sent before the worker was reset, and that the scheduler has undone, is run all the same.",
        Edit(Worker._execute, "if batch.step < self._next_step:", "if False:"),
    ),
    _mutant(
        "held_scheduler_plans_on",
        "stream_equals_result",
        "",
        "A scheduler whose detokenizer is far behind launches steps all the same, until their tokens are refused.",
        Edit(Cell.step, "if self.mailbox.postpone():", "if False:"),
        Edit(SimulatedCell.busy, "return not self.mailbox.postpone()", "return True"),
    ),
    _mutant(
        "stale_tokens_are_counted",
        "observability_conservation",
        "34320",
        "Tokens that are dropped count as generated.",
        Edit(
            Loop._apply,
            "self.counters.generated_tokens += len(rows)",
            "self.counters.generated_tokens += len(result.tokens)",
        ),
    ),
    _mutant(
        "cut_tokens_are_counted",
        "observability_conservation",
        "14934",
        "Tokens behind a stop string count as generated.",
        Edit(Requests.close, "counters.generated_tokens = generated", "pass"),
    ),
    _mutant(
        "retraction_is_not_recorded",
        "observability_conservation",
        "29750",
        "A retraction happens without a record.",
        Edit(Requests.retracted, "self.journal.moved(", "(lambda *edge: None)("),
    ),
    _mutant(
        "weights_under_a_step",
        "weight_epochs",
        "14178",
        "The exchange of the weights overtakes steps that are in flight.",
        Edit(
            WeightClient.swap_if_due,
            "if weights.update is None or not weights.swapping or intake.loop.in_flight:",
            "if weights.update is None or not weights.swapping:",
        ),
        Edit(WeightClient.swap_if_due, "Swap(self._asked))", "Swap(self._asked), Lane.CONTROL)"),
        Edit(WeightKeeper.swapped, "if loop.in_flight:", "if False:"),
    ),
    _mutant(
        "steps_while_weights_are_exchanged",
        "weight_epochs",
        "20729",
        "Steps are planned while the worker exchanges the weights.",
        Edit(Intake.turn, "if not self.weights.swapping:", "if True:"),
        Edit(WeightKeeper.swapped, "if loop.in_flight:", "if False:"),
    ),
    _mutant(
        "keys_of_the_old_weights_are_kept",
        "weight_epochs",
        "6367, InternLM/lmdeploy 4917",
        "Who runs goes on from keys and values that the old weights have computed.",
        Edit(WeightKeeper.swapped, "loop.requests.retract(row, Cause.WEIGHTS, now)", "pass"),
    ),
    _mutant(
        "cache_outlives_the_weights",
        "weight_epochs",
        "14178",
        "What the old weights have computed stays in the prefix cache, and everybody keeps the name of its pages.",
        Edit(WeightKeeper.swapped, "lose_pages(loop, now)", "[companion.lost(now) for companion in loop.companions]"),
        Edit(WeightKeeper.swapped, "self.renew()", "pass"),
        Edit(Scheduler._namespace, "self.intake.weights.served.fingerprint", "self.config.weights"),
    ),
    _mutant(
        "failed_update_is_served",
        "weight_epochs",
        "InternLM/lmdeploy 4917",
        "Weights that could not be read are said to be served.",
        Edit(
            WeightKeeper.failed,
            "self._move(WeightEvent.FAILED, now)",
            "(setattr(self, 'served', Served('x', 'x')), self._move(WeightEvent.FAILED, now))",
        ),
    ),
    _mutant(
        "tokens_of_new_weights_bear_the_old_name",
        "schedule_equivalence",
        "20729",
        "Clients are told that the old weights have drawn their tokens.",
        Edit(
            Scheduler._send_step,
            "self.intake.weights.served,",
            "msgspec.structs.replace(self.intake.weights.served, version=self.config.weight_version),",
        ),
    ),
    _mutant(
        "update_that_fails_is_never_answered",
        "bounded_progress",
        "",
        "Who asked for weights that cannot be read waits for ever.",
        Edit(WeightKeeper.failed, "self._answer(asker, False, message)", "pass"),
    ),
    _mutant(
        "removal_is_not_told",
        "observability_conservation",
        "29750",
        "Of pages that leave the cache together, only one is told to those who follow its events.",
        Edit(
            RadixCache.evict,
            "self.events.append(Removed(eviction.pages))",
            "self.events.append(Removed(eviction.pages[:1]))",
        ),
    ),
    _mutant(
        "lost_step_is_not_counted",
        "observability_conservation",
        "",
        "A step that was lost is not among those that `/metrics` says were.",
        Edit(undo_newest, "counters.steps_lost = steps_lost", "pass"),
    ),
    _mutant(
        "prompts_are_counted_as_output",
        "observability_conservation",
        "",
        "What `/metrics` calls output tokens of clients are tokens of their prompts.",
        Edit(OpenRequests._measure, "+= done.usage.completion_tokens", "+= done.usage.prompt_tokens"),
    ),
    _mutant(
        "ends_of_a_cause_are_counted_once",
        "observability_conservation",
        "",
        "However many requests ended with a cause, one is counted.",
        Edit(Requests.close, "counters.by_cause.get(cause, 0) + 1", "1"),
    ),
)
