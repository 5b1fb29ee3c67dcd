"""Whose prompt goes first: no violations of `prompts_take_turns`. Those are in tests/lifecycle/canaries_turns.py."""

from __future__ import annotations

import pytest

from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.properties.prompt_turns import PromptsTakeTurns
from tests.lifecycle.canaries_turns import prompts

SOUND: dict[str, list[dict[int, int]]] = {
    "two turns of shorter ones, and then its own": [{0: 12}, {1: 8, 0: 4}, {2: 8, 0: 4}, {0: 8}, {3: 8}],
    "its own turn, in which it ends": [{0: 16}, {1: 8}, {2: 8}, {0: 12, 3: 4}],
    "its own turn in between": [{0: 4}, {1: 8}, {0: 12}, {2: 8}, {3: 8, 0: 4}],
    "the shortest first": [{0: 4, 1: 4}, {1: 4, 0: 4}],
    "fewer tokens than a page for who comes later": [{0: 4}, {0: 8, 1: 3}],
    "one that begins where nobody has": [{1: 8}, {0: 12}],
}


@pytest.mark.parametrize("what", SOUND)
def test_these_turns_are_sound(what: str) -> None:
    monitor = Monitor([PromptsTakeTurns()])
    for record in prompts(*SOUND[what]):
        monitor.observe(record)
    assert monitor.judging
    assert monitor.violations == []


def test_where_admission_is_not_by_priority_none_is_looked_at() -> None:
    monitor = Monitor([PromptsTakeTurns()])
    for record in prompts({0: 12}, {1: 8, 0: 4}, priority=1, policy="fcfs"):
        monitor.observe(record)
    assert monitor.violations == []
