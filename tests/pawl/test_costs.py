"""What steps cost is kept by an engine, and found anew by an account of all of them: both say the same of the next."""

from __future__ import annotations

import random

import pytest

from pawl.lifecycle.step_times import MEASURED_EVERY, StepTimes
from pawl.testing.costs import WatchedTimes
from tests.mutants.mutant import Edit, Group, Mutant, planted

WRONG = [
    Edit(StepTimes.prompt_tokens, "share * alone_s", "alone_s"),
    Edit(StepTimes.prompt_tokens, "if self.measuring:", "if False:"),
    Edit(StepTimes.resolved, "max(launched_at, self.resolved_at)", "launched_at"),
    Edit(StepTimes.resolved, "* ALONE_WEIGHT", "* 2 * ALONE_WEIGHT"),
    Edit(StepTimes.resolved, "self.beyond * TOKEN_DECAY", "self.beyond"),
    Edit(StepTimes.alone_seconds, "if decoding >= self.alone", "if True"),
    Edit(StepTimes.forget, "self.alone, self.alone_s, self.beyond,", "self.alone, self.alone_s, _,"),
]


def lived(seed: int) -> list[str]:
    """What is found wrong in the life of one engine, at whose steps anything may happen."""
    chance, now, wrong = random.Random(seed), 0.0, list[str]()
    times = WatchedTimes()
    times.watch(lambda name, text, request: wrong.append(f"{name}: {text}"))
    for _ in range(4 * MEASURED_EVERY):
        now += chance.choice((0.0, 0.001, chance.random()))
        decoding = chance.choice((0, 1, 1, 2, 5))
        prompts = times.prompt_tokens(decoding, chance.choice((0, 1, 3, 20)), chance.choice((0.01, 0.5)), 16, 4)
        if decoding or prompts:
            times.launched(decoding, chance.randint(0 if decoding else 1, prompts) if prompts else 0, now)
        while len(times.in_flight) > chance.choice((0, 1, 1, 2)):
            now += chance.choice((0.001, 0.01, chance.random()))
            times.resolved(now)
        if chance.random() < 0.01:
            times.lost()
        if chance.random() < 0.01:
            times.forget()
    return wrong


def test_an_account_of_all_steps_says_what_the_engine_has_learned() -> None:
    assert [lived(seed) for seed in range(8)] == [[]] * 8


@pytest.mark.parametrize("edit", WRONG, ids=lambda edit: edit.new)
def test_what_is_learned_wrong_is_told(edit: Edit) -> None:
    with planted(Mutant("made_up", Group.LIFECYCLE, "bounded_gaps", "", "", (edit,))):
        wrong = [text for seed in range(4) for text in lived(seed)]
    assert wrong
    assert wrong[0].startswith("bounded_gaps: beside ")
