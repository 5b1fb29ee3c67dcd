"""What drafts save and cost: the same requests with `--speculate ngram` and without, in turns, in one engine.

    python -m benchmarks.speculation [--rounds N] [--tokens N] [--cases quotes edit …]

Processor time of this process, all threads together: other programs disturb it less than they do a clock. Answers must
be the same token by token, or the benchmark fails. `gain` is the median of the ratios within one round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, NamedTuple

from benchmarks.machine import num_processors
from pawl.actors.scheduler import Scheduler
from pawl.config import ServerConfig
from pawl.engine import Engine
from pawl.loops.planner import UnifiedPlanner
from pawl.loops.speculation import Drafter

ARTICLE = """\
The town of Harlow Bridge opened its new library on Saturday after four years of building. The house stands on the place
of the old mill, whose wheel is kept in the hall. "We wanted a room where nobody has to buy anything," said the mayor,
Edith Sorensen. The library has 64,000 books, a workshop with two looms and a printing press, and a garden on the roof.
On the first day 3,200 people came. Some waited for an hour in the rain. "My daughter has asked for a card since the
first stone was laid," said Tomas Reiner, a baker. The building cost 18 million, two million less than was planned. The
architect, Ines Caldeira, explained that the walls are of timber from the forest above the town. Opening hours are from
nine in the morning to nine in the evening, also on Sundays. A second house, for children, is to follow in two years.
"""
CODE = '''\
class Account:
    """Money of one customer."""

    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance
        self.entries = []

    def deposit(self, amount, note=""):
        if amount <= 0:
            raise ValueError("a deposit must be positive")
        self.balance += amount
        self.entries.append(("deposit", amount, note))
        return self.balance

    def withdraw(self, amount, note=""):
        if amount <= 0:
            raise ValueError("a withdrawal must be positive")
        if amount > self.balance:
            raise ValueError("the balance is too low")
        self.balance -= amount
        self.entries.append(("withdraw", amount, note))
        return self.balance

    def statement(self):
        lines = [f"{kind:10} {amount:10.2f} {note}" for kind, amount, note in self.entries]
        return "\\n".join([f"Account of {self.owner}", *lines, f"Balance: {self.balance:.2f}"])
'''
SUBJECTS = (
    *("a lighthouse", "a clockmaker", "the first snow", "an old map", "a lost letter", "a river in spring"),
    *("two brothers", "a night train", "the market", "a wooden boat", "a strange bird", "the last bus"),
)


class Case(NamedTuple):
    """Some requests at once."""

    prompts: tuple[str, ...]
    temperature: float
    copies: bool
    """Whether much of the output stands in the prompt."""


def stories(count: int) -> tuple[str, ...]:
    """Beginnings of texts that nothing is copied into."""
    return tuple(f"A short story about {SUBJECTS[index % len(SUBJECTS)]}, part {index}.\n\n" for index in range(count))


QUOTES = (
    ARTICLE + '\nThe article once more, sentence by sentence, each as a quotation:\n\n1. "The town of Harlow Bridge'
)
EDIT = "```python\n" + CODE + "```\nThe same class, with `owner` renamed to `holder`:\n```python\n"
EDIT += CODE[: CODE.index("        self.entries")].replace("owner", "holder")
CASES = {
    "quotes": Case((QUOTES,), 0.0, True),
    "quotes, sampled": Case((QUOTES,), 0.6, True),
    "edit of code": Case((EDIT,), 0.0, True),
    "edit of code, 8 at once": Case((EDIT,) * 8, 0.3, True),
    "story": Case(stories(1), 0.8, False),
    "story, greedy": Case(stories(1), 0.0, False),
    "stories, 8 at once": Case(stories(8), 0.8, False),
    "stories, 32 at once": Case(stories(32), 0.8, False),
}


class Turn(NamedTuple):
    """What one engine took for one case."""

    processor_s: float
    wall_s: float
    tokens: tuple[tuple[int, ...], ...]
    drafted: int
    accepted: int


def turn(engine: Engine, case: Case, tokens: int) -> Turn:
    """Answer the case once."""
    fields: list[dict[str, Any]] = [
        {"max_new_tokens": tokens, "temperature": case.temperature, "ignore_eos": True, "seed": seed}
        for seed in range(len(case.prompts))
    ]
    processor, wall = time.process_time(), time.perf_counter()
    answers = engine.generate(case.prompts, fields)
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    usages = [answer.done.usage for answer in answers]
    return Turn(
        processor,
        wall,
        tuple(tuple(answer.tokens) for answer in answers),
        sum(usage.draft_tokens for usage in usages),
        sum(usage.accepted_tokens for usage in usages),
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES), metavar="CASE")
    arguments = parser.parse_args()
    settings: dict[str, Any] = {"kv_tokens": 32_768, "trace": False, "log_level": "error", "speculate": "ngram"}
    with Engine(ServerConfig(**settings)) as engine:
        print(f"{engine.parts.summary.get('processor')}, {num_processors()} processors, {arguments.tokens} tokens each")
        drafter = _planner(engine).drafter
        for name in arguments.cases:
            _measure(name, engine, drafter, arguments.rounds, arguments.tokens)


def _planner(engine: Engine) -> UnifiedPlanner:
    """Of its scheduler."""
    scheduler = next(spec.actor for spec in engine._actors if isinstance(spec.actor, Scheduler))
    assert isinstance(scheduler.loop.planner, UnifiedPlanner)
    return scheduler.loop.planner


def _measure(name: str, engine: Engine, drafter: Drafter | None, rounds: int, tokens: int) -> None:
    case, planner = CASES[name], _planner(engine)
    turn(engine, case, tokens)  # what is in the cache from here on is the same for all
    turns: list[tuple[Turn, Turn]] = []
    for number in range(rounds):
        taken = {}
        for drafts in (number % 2 == 0, number % 2 == 1):
            planner.drafter = drafter if drafts else None
            taken[drafts] = turn(engine, case, tokens)
        without, drafted = taken[False], taken[True]
        if without.tokens != drafted.tokens:
            raise SystemExit(f"{name}: other tokens with drafts than without")
        turns.append((without, drafted))
    processor = statistics.median(a.processor_s / b.processor_s for a, b in turns)
    wall = statistics.median(a.wall_s / b.wall_s for a, b in turns)
    least = min(a.processor_s for a, _ in turns) / min(b.processor_s for _, b in turns)
    last = turns[-1][1]
    share = f"{last.accepted} of {last.drafted} drafted tokens right"
    print(
        f"{name:26} gain {processor:5.2f} (least of each {least:5.2f}, by the clock {wall:5.2f})   {share}", flush=True
    )


if __name__ == "__main__":
    main()
