"""Cliffs: what a request costs that asks for more than the plain one does, in turns with it, in one engine.

    python -m benchmarks.cliffs [--rounds N] [--tokens N] [--cases NAME …]

32 requests at once, each with 128 tokens of this project's page on architecture. A round answers the plain case and the
other one, each first in turns; processor time of this process, all threads together, as other programs disturb it less
than they do a clock. `share` is the speed that is left: the median of the ratios within a round, the least and the
largest beside it. The prompts are in the cache from the first turn on, so what is compared are decode steps, but for
the last three:

    a pool for a tenth    an engine of its own that has pages for a tenth of the tokens, none of them cached
    1-token floods        256 requests of 16 tokens for one token each, against 32 of 128: the same prompt tokens
    a long text           300,000 characters to read, which are then too long for the context, beside the 32
"""

from __future__ import annotations

import argparse
import string
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from benchmarks.contestants import ROOT
from benchmarks.harness import Result, Spread, write_json
from benchmarks.machine import num_processors
from pawl.build.parts import Parts
from pawl.config import ServerConfig
from pawl.engine import Engine, RequestFailed

ROWS, PROMPT, STRIDE = 32, 128, 40
BOUND = 0.95
"""Of the plain speed: log-probabilities, penalties and top-p may cost a twentieth."""
FLOOD, SHORT = 256, 16
TEXT = 300_000
"""Characters."""
SAMPLED = {"temperature": 0.8}


@dataclass(frozen=True)
class Case:
    """What 32 requests ask for, beside what is plain."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    prompts: int = ROWS
    """Different ones."""
    bound: float | None = None
    """The least share that is wanted."""
    plain: Mapping[str, Any] = field(default_factory=dict)
    """What the plain case asks for."""


CASES = {
    "top-5 log-probabilities": Case({"top_logprobs": 5}, bound=BOUND),
    "penalties": Case({"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.2}, bound=BOUND),
    "sampled": Case(SAMPLED),
    "top-p": Case(SAMPLED | {"top_p": 0.95}, bound=BOUND),
    "top-p beside sampled": Case(SAMPLED | {"top_p": 0.95}, plain=SAMPLED),
    "top-k 40, top-p": Case(SAMPLED | {"top_k": 40, "top_p": 0.95}),
    "16 stop strings": Case(stop=tuple(f"\n\n{letter}{letter}:" for letter in string.ascii_uppercase[:16])),
    "n = 8": Case(SAMPLED, prompts=ROWS // 8, plain=SAMPLED),
}
OTHERS = ("a pool for a tenth", "1-token floods", "a long text")


def page(engine: Engine) -> list[int]:
    """Tokens of ordinary text."""
    assert isinstance(engine.parts, Parts)
    return engine.parts.vocabulary.encode((ROOT / "docs" / "architecture.md").read_text()).tolist()


def prompts(text: list[int], count: int) -> list[list[int]]:
    """So many different parts of it."""
    return [text[index * STRIDE : index * STRIDE + PROMPT] for index in range(count)]


def fresh(count: int, length: int, seed: int) -> list[list[int]]:
    """So many that no cache has."""
    return np.random.default_rng(seed).integers(1000, 20_000, (count, length)).tolist()


def seconds(work: Callable[[], object]) -> float:
    """Processor time that it takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def answer(engine: Engine, asked: list[list[int]], tokens: int, stop: tuple[str, ...] = (), **fields: Any) -> None:
    """Of all, at once, so many tokens each."""
    each = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0.0} | fields
    engine.generate(asked, [each | {"seed": seed} for seed in range(len(asked))], stop=stop)


def shares(plain: Callable[[], object], other: Callable[[], object], rounds: int) -> Iterator[float]:
    """The speed of one beside the other, round by round, who begins in turns; after one that does not count."""
    plain(), other()
    for number in range(rounds):
        order = (plain, other) if number % 2 == 0 else (other, plain)
        taken = {work: seconds(work) for work in order}
        yield taken[plain] / taken[other]


def of_case(engine: Engine, case: Case, tokens: int, rounds: int) -> Spread:
    """Shares of a case."""
    text = page(engine)
    asked = prompts(text, case.prompts) * (ROWS // case.prompts)

    def plain() -> None:
        answer(engine, prompts(text, ROWS), tokens, **case.plain)

    def other() -> None:
        answer(engine, asked, tokens, case.stop, **case.fields)

    return Spread.of([*shares(plain, other, rounds)])


def of_others(engine: Engine, name: str, tokens: int, rounds: int, settings: dict[str, Any]) -> Spread:
    """Shares of what is no matter of a request's fields."""

    asked = prompts(page(engine), ROWS)
    if name == "a long text":
        words = "The quick brown fox jumps over the lazy dog near the river bank, and nobody sees it. "
        long = (words * (TEXT // len(words) + 1))[:TEXT]

        def beside() -> None:
            with suppress(RequestFailed):
                engine.generate([long], {"max_new_tokens": 1})
            answer(engine, asked, tokens)

        return Spread.of([*shares(partial(answer, engine, asked, tokens), beside, rounds)])
    if name == "1-token floods":
        seeds = iter(range(1, 1 << 30))

        def few() -> None:
            answer(engine, fresh(ROWS, PROMPT, next(seeds)), 1)

        def many() -> None:
            answer(engine, fresh(FLOOD, SHORT, next(seeds)), 1)

        return Spread.of([*shares(few, many, rounds)])
    without = settings | {"cache": "none"}
    small = without | {"kv_tokens": ROWS * (PROMPT + tokens) // 10}
    with Engine(ServerConfig(**without)) as whole, Engine(ServerConfig(**small)) as tenth:
        works = (partial(answer, each, asked, tokens) for each in (whole, tenth))
        return Spread.of([*shares(*works, rounds)])


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--cases", nargs="*", default=[*CASES, *OTHERS], choices=[*CASES, *OTHERS], metavar="CASE")
    arguments = parser.parse_args()
    settings: dict[str, Any] = {"kv_tokens": 32_768, "trace": False, "log_level": "error"}
    results = []
    with Engine(ServerConfig(**settings)) as engine:
        print(f"{engine.parts.summary.get('processor')}, {num_processors()} processors", flush=True)
        for name in arguments.cases:
            if name in CASES:
                spread, bound = of_case(engine, CASES[name], arguments.tokens, arguments.rounds), CASES[name].bound
            else:
                spread, bound = of_others(engine, name, arguments.tokens, arguments.rounds, settings), None
            results.append(Result(name, spread, "of plain", target=bound, higher_is_better=True))
            print(f"{name:26} {spread.median:.3f}  ({spread.low:.3f} - {spread.high:.3f})", flush=True)
    print(f"written to {write_json(results, 'bench-cliffs.json')}")


if __name__ == "__main__":
    main()
