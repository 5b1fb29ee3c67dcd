"""A run that was not judged to its end has failed; an engine that loses an actor, or stops at work, answers all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import pytest

from pawl.actors.control.serving import PauseGeneration
from pawl.actors.gateway import Gateway
from pawl.actors.messages.control import Reply, Stalled
from pawl.actors.messages.generate import TokenLogprob
from pawl.actors.messages.replicas import Parted
from pawl.actors.messages.transfer import Saved
from pawl.actors.names import NAMES
from pawl.actors.runtime.dead_letters import Reason
from pawl.actors.simulation.exploration import drive
from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.quiet import silence
from pawl.actors.simulation.strategies.pos import POS
from pawl.actors.simulation.strategies.simple import Fair
from pawl.lifecycle.properties.base import Property, Violation
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Record, StepCommitted
from pawl.loops.decision_log import OneDecisionLog
from pawl.testing import Arrival, PropertyFailed, Workload, explore_workload
from pawl.testing.clients import GONE, LEFT
from pawl.testing.cluster import PATIENCE_S, Cluster, cluster
from pawl.testing.expectations import AS_STARTED
from pawl.testing.models import GHOST
from pawl.testing.shape import Shape
from pawl.testing.workload import Closing, Control

SERVED = Workload(arrivals=tuple(Arrival(prompt=(97, 98), max_new_tokens=3, at_s=at) for at in (0.0, 0.0, 0.3)))
ACTORS = (
    *(NAMES.tokenizer, NAMES.scheduler, NAMES.worker, NAMES.detokenizer, NAMES.gateway),
    *(NAMES.watchdog, NAMES.recorder, NAMES.storage, NAMES.grammar),
)


class Resigned(OneDecisionLog):
    """A replay that gives up at the first step."""

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        if isinstance(record, StepCommitted):
            self._judging, self.unjudged = False, "it was too hard"
        return super().observe(record, history)


class Raises(Property):
    """Cannot digest a step."""

    name: ClassVar[str] = "raises"

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        if isinstance(record, StepCommitted):
            raise ZeroDivisionError
        return ()


def judged_by(judge: Property) -> None:
    """Drive a sound run, judged by this."""
    with silence():
        drive(cluster(SERVED, Fair(), properties=lambda model: [judge]))


def test_a_replay_that_gives_up_fails_the_run() -> None:
    judged_by(OneDecisionLog())
    with pytest.raises(PropertyFailed, match="one_decision_log: it was too hard"):
        judged_by(Resigned())


def test_a_property_that_raises_fails_the_run() -> None:
    with pytest.raises(PropertyFailed, match="well_formed: no engine records this StepCommitted: ZeroDivisionError"):
        judged_by(Raises())


def test_a_run_of_which_nobody_judged_the_end_has_failed() -> None:
    run = cluster(SERVED, Fair())
    run.monitor.judging = False
    with silence(), pytest.raises(PropertyFailed, match="not judged to its end"):
        drive(run)


@pytest.mark.parametrize("name", ACTORS)
def test_when_an_actor_crashes_everybody_is_answered(name: str) -> None:
    crashes, faults = 0, Faults(crash=1, may_crash=(name,))
    for seed in range(4):
        tiers = {"host_pages": 4, "cache": "radix", "window": None, "prefillers": 0} if name == NAMES.storage else {}
        workload = Workload.random(seed, replicas=1, **tiers)
        outcome = explore_workload(workload, "random", 4, seed=seed, faults=faults, shrink=False)
        assert outcome.found is None, str(outcome.found)
        crashes += outcome.reached["crash of an actor"]
    assert crashes


@pytest.mark.parametrize("grace_s", [None, 0.0, 0.2])
def test_an_engine_that_ends_at_work_answers_everybody(grace_s: float | None) -> None:
    drained = 0
    for seed in range(4):
        workload = msgspec.structs.replace(Workload.random(seed), closing=Closing(after_tokens=1, grace_s=grace_s))
        outcome = explore_workload(workload, "pct", 4, seed=seed, shrink=False)
        assert outcome.found is None, str(outcome.found)
        drained += outcome.reached["end by drained"]
    assert drained


def test_nobody_waits_for_the_steps_of_a_replica_that_has_left() -> None:
    shape = Shape(replicas=2, max_replicas=2, scale_at=1, num_pages=12, hitches=(0.0, 1.0))
    arrivals = tuple(Arrival(prompt=(97, 98, n), max_new_tokens=9, stop_after=2) for n in (1, 2))
    workload, decider = Workload(arrivals=arrivals, shape=shape), POS(1)
    left_at_work = 0
    for _ in range(6):
        decider.begin()
        with silence():
            run = cluster(workload, decider)
            drive(run)
        left_at_work += sum(replica.left and len(replica.scheduler.loop.in_flight) > 0 for replica in run.replicas)
        assert run.system.now_s < PATIENCE_S
        assert run.closing
    assert left_at_work


def test_a_router_that_has_stopped_need_not_hear_that_a_replica_has_left() -> None:
    with silence():
        run = cluster(SERVED, Fair())
        drive(run)
    run.system.dead_letters.add(NAMES.router, NAMES.gateway, Parted(1), Reason.RECEIVER_GONE)
    run.checks.check_end()


@pytest.mark.parametrize("missing", ["prompt", "one of the prompt", "token"])
@pytest.mark.parametrize("ended", [True, False])
def test_log_probabilities_come_with_every_token_and_with_the_prompt(missing: str, ended: bool) -> None:
    arrival = Arrival(prompt=(97, 98, 99), max_new_tokens=2, top_logprobs=0, prompt_logprobs=True)
    said = GHOST.expectations.said(arrival, AS_STARTED)
    tokens, prompt = (
        [
            TokenLogprob(token, logprob, "", tuple((*pair, "") for pair in top), rank)
            for token, logprob, top, rank in some
        ]
        for some in (said.scores, said.prompt_scores)
    )

    def check(count: int) -> None:
        scores = tokens[:count], prompt
        GHOST.expectations.check_scores(arrival, AS_STARTED, *scores, 1, count=count, ended=ended)

    assert len(tokens) == 2
    check(2)
    check(1)
    prompt, tokens = {
        "prompt": ([], tokens),
        "one of the prompt": (prompt[:-1], tokens),
        "token": (prompt, tokens[:1]),
    }[missing]
    with pytest.raises(PropertyFailed, match="log-probabilities"):
        check(2)
    if missing == "prompt" and not ended:  # aborted before it had any
        check(0)


def test_a_gateway_that_goes_without_a_word_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gateway, "_end_all", lambda gateway, cause, message: gateway.asks.fail(message))
    faults = Faults(crash=1, may_crash=(NAMES.scheduler,))
    outcome = explore_workload(SERVED, "random", 60, faults=faults, shrink=False)
    assert outcome.found is not None
    assert "never answered" in str(outcome.found)


@pytest.mark.parametrize(
    ("sender", "letter", "sound"),
    [
        (NAMES.worker, Saved(1), True),
        (NAMES.worker, Saved(1, (b"key",)), False),
        (NAMES.storage, Saved(1), False),
    ],
)
def test_pages_that_a_worker_could_not_read_may_be_given_up_to_a_scheduler_that_has_stopped(
    sender: str, letter: Saved, sound: bool
) -> None:
    with silence():
        run = cluster(SERVED, Fair())
        drive(run)
    run.system.dead_letters.add(NAMES.scheduler, sender, letter, Reason.RECEIVER_GONE)
    if sound:
        run.checks.check_end()
    else:
        with pytest.raises(PropertyFailed, match=f"nobody took: Saved from {sender}"):
            run.checks.check_end()


@pytest.mark.parametrize(("words", "excused_by"), [(GONE[0], "failed"), (GONE[1], "failed"), (LEFT, "left")])
def test_an_answer_is_owed_by_nobody_only_where_somebody_is_lost_or_has_left(
    words: str, excused_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = msgspec.structs.replace(SERVED, controls=(Control(body=PauseGeneration("abort"), at_s=0.1),))
    with silence():
        run = cluster(asked, Fair())
        drive(run)
    run.desk.answers[0] = [Reply(1, False, f"replica 0 {words}")]
    for happened in {"nothing", "left", excused_by}:  # where somebody is lost the run may be cut short
        with monkeypatch.context() as patch:
            if happened == "failed":
                patch.setattr(Cluster, "failed", True)
            elif happened == "left":
                patch.setattr(run.replicas[0], "left", True)
            if happened == excused_by:
                run.checks._check_answers()
                continue
            with pytest.raises(PropertyFailed, match="pause: it was not paused"):
                run.checks._check_answers()


@pytest.mark.parametrize("seen", [Stalled(40.0), Stalled(0.0, silent_s=1.0)])
def test_a_scheduler_that_the_watchdog_does_not_hear_is_told(seen: Stalled) -> None:
    run = cluster(SERVED, Fair())
    with silence():
        drive(run)
    run.checks.check_end()
    run.desk.pace = seen
    with pytest.raises(PropertyFailed, match="bounded_progress: the watchdog saw a stall"):
        run.checks.check_end()
