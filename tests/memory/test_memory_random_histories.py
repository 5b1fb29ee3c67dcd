"""Long random histories of every verb of memory, from seeds; a failure is shrunk to a program of a few calls.

pytest tests/memory/test_memory_random_histories.py -s                              ten thousand operations
PAWL_HYPOTHESIS=nightly pytest tests/memory/test_memory_random_histories.py -s      a million more, from a new seed
"""

from __future__ import annotations

import time
from random import SystemRandom

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from pawl.memory.page_table import PageTable
from pawl.memory.violation import MemoryViolation
from tests.memory.every_verb import EveryVerb, WithoutCache, fails, play, random_program, shrunk
from tests.memory.test_memory_histories import PHASES

TURNS = 40


def kind_of(seed: int) -> type[EveryVerb]:
    """One history of five is without a cache."""
    return WithoutCache if seed % 5 == 4 else EveryVerb


def play_until(num_operations: int, seed: int) -> None:
    """Play histories from `seed` on until so many operations have been checked; say how fast."""
    played, compared, start, first = 0, 0, time.perf_counter(), seed
    while played < num_operations:
        program, kind = random_program(seed, TURNS), kind_of(seed)
        try:
            history = play(program, kind())
        except (AssertionError, MemoryViolation) as error:
            calls = "\n    ".join(map(repr, shrunk(program, kind)))
            raise AssertionError(f"seed {seed}, {kind.__name__}: {error}\n    {calls}") from error
        played, compared, seed = played + history.num_moves, compared + history.num_compared, seed + 1
    rate = played / (time.perf_counter() - start)
    print(f"seeds {first} to {seed - 1}: {played} operations, {rate:.0f} a second, {compared} rollbacks compared")


def test_ten_thousand_operations_keep_every_law() -> None:
    play_until(10_000, 0)


@pytest.mark.slow
def test_a_million_operations_keep_every_law() -> None:
    """New seeds in every nightly run, the same ones otherwise."""
    play_until(1_000_000, 1_000 if settings().derandomize else SystemRandom().randrange(10**9))


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("kind", [EveryVerb, WithoutCache])
def test_every_verb_agrees_with_the_reference_after_every_move(kind: type[EveryVerb], page_size: int) -> None:
    history = type(kind.__name__, (kind,), {"page_size": page_size})
    examples = max(settings().max_examples // 4, 1)
    run_state_machine_as_test(
        history, settings=settings(max_examples=examples, stateful_step_count=20, deadline=None, phases=PHASES)
    )


def test_a_failure_is_shrunk_to_the_few_calls_that_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageTable, "cut", lambda *_: None)
    failing = next(seed for seed in range(20) if fails(random_program(seed, 20), EveryVerb))
    program = random_program(failing, 20)
    short = shrunk(program, EveryVerb)
    assert fails(short, EveryVerb)
    assert len(short) <= 3 < len(program), "a start and a turn that is undone"
    assert all(not fails(short[:index] + short[index + 1 :], EveryVerb) for index in range(1, len(short)))
