"""What a client must get, from its own request alone: no scheduler, no neighbours, no memory to share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from pawl.actors.text.ghost import ghost_vocabulary
from pawl.actors.text.vocabulary import Vocabulary
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.states import Cause
from pawl.lifecycle.step import SlotAssignment, StepBatch, StepResult
from pawl.testing.workload import Arrival, parameters_of

BROKEN = "\N{REPLACEMENT CHARACTER}"


class PropertyFailed(Exception):
    """A property does not hold in this run."""

    def __init__(self, name: str, explanation: str, request: int | None = None) -> None:
        concerned = "" if request is None else f", request {request}"
        super().__init__(f"{name}{concerned}: {explanation}")
        self.property = name
        self.request = request


class Expected(NamedTuple):
    """The whole output of a request that nobody ends early."""

    tokens: tuple[int, ...]
    text: str
    cause: Cause


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    """The ghost's, made once."""
    return ghost_vocabulary()


class OneAtATime(Protocol):
    """A runner with at least one slot, and as many pages as one request needs."""

    def launch(self, batch: StepBatch) -> Any: ...

    def collect(self, launched: Any) -> StepResult: ...

    def reset(self) -> None: ...


def drawn_alone(runner: OneAtATime, arrival: Arrival, page_size: int) -> list[int]:
    """All tokens that the request asks for, from a runner that it has for itself, one step after the other."""
    runner.reset()
    count = len(arrival.prompt)
    num_pages = -(-(count + arrival.max_new_tokens) // page_size)
    none = np.zeros(0, np.int32)
    drawn: list[int] = []
    while len(drawn) < arrival.max_new_tokens:
        first = not drawn
        pages = np.arange(num_pages, dtype=np.int32) if first else none
        batch = StepBatch(
            step=len(drawn) + 1,
            slots=np.zeros(1, np.int32),
            starts=np.array([0 if first else count + len(drawn) - 1], np.int32),
            lengths=np.array([count if first else 1], np.int32),
            tokens=np.array(arrival.prompt, np.int32) if first else none,
            chained=np.array([not first]),
            samples=np.ones(1, np.bool_),
            page_slots=np.zeros_like(pages),
            page_indices=pages,
            pages=pages,
            window_pages=None,
            admitted=(SlotAssignment(0, parameters_of(arrival), count, none, 0),) if first else (),
        )
        drawn.append(int(runner.collect(runner.launch(batch)).tokens[0]))
    return drawn


def ghost_alone(arrival: Arrival) -> Sequence[int]:
    """What the ghost says to a request."""
    if arrival.seed is None:
        return expected(arrival.prompt, arrival.max_new_tokens)
    total = len(arrival.prompt) + arrival.max_new_tokens
    return drawn_alone(Ghost(num_pages=1, page_size=total, num_slots=1, max_context=total, small=True), arrival, total)


class Expectations:
    """What clients must get from a model, given what it says to a request that has it for itself."""

    def __init__(self, alone: Callable[[Arrival], Sequence[int]]) -> None:
        """`alone`: all tokens that a request asks for, as if it were the only one and nothing stopped it."""
        self.alone = lru_cache(maxsize=4096)(lambda arrival: tuple(alone(arrival)))
        self.stop_strings = lru_cache(maxsize=4096)(self._stop_strings)
        self.whole_output = lru_cache(maxsize=4096)(self._whole_output)

    def _stop_strings(self, arrival: Arrival) -> tuple[str, ...]:
        """The text of the output token that is to stop it; none when that is no whole text of its own.

        Where the number of that token is even, the last character before it belongs to the stop string as well: then
        the string stands across two tokens.
        """
        if arrival.stop_after is None:
            return ()
        tokens = self.alone(arrival)[: arrival.stop_after]
        before, text = vocabulary().decode(tokens[:-1]), vocabulary().decode(tokens)
        start = len(before) - 1 if arrival.stop_after % 2 == 0 else len(before)
        stop = text[max(start, 0) :]
        return (stop,) if stop and BROKEN not in text else ()

    def _whole_output(self, arrival: Arrival) -> Expected:
        """What the request gets when nobody ends it early."""
        tokens = self.alone(arrival)
        text = vocabulary().decode(tokens)
        for stop in self.stop_strings(arrival):
            place = text.find(stop)
            if place >= 0:
                count = next(n for n in range(1, len(tokens) + 1) if stop in vocabulary().decode(tokens[:n]))
                return Expected(tokens[:count], text[:place], Cause.STOP_STRING)
        return Expected(tokens, text, Cause.LENGTH)

    def check_beginning(self, arrival: Arrival, tokens: Sequence[int], text: str, request: int | None) -> None:
        """Somebody ended the request early: it got a beginning of what it would have got. Raises PropertyFailed."""
        whole = self.whole_output(arrival)
        if tuple(tokens) != whole.tokens[: len(tokens)]:
            said = f"{list(tokens)} is not how {list(whole.tokens)} begins"
            raise PropertyFailed("schedule_equivalence", said, request)
        # What is left of a character when a text is cut shows as a broken one.
        if not whole.text.startswith(text.rstrip(BROKEN)):
            raise PropertyFailed("stream_equals_result", f"{text!r} is not how {whole.text!r} begins", request)

    def check_whole(
        self, arrival: Arrival, tokens: Sequence[int], text: str, cause: Cause, request: int | None
    ) -> None:
        """The request ended by itself: it got everything, and nothing after it. Raises PropertyFailed."""
        whole, stops = self.whole_output(arrival), self.stop_strings(arrival)
        if cause is not whole.cause or any(stop in text for stop in stops):
            said = f"{text!r} ended with {cause}, but with stop strings {stops} it is {whole.text!r} and {whole.cause}"
            raise PropertyFailed("stop_semantics" if stops else "stream_equals_result", said, request)
        if tuple(tokens) != whole.tokens:
            name = "schedule_equivalence" if len(tokens) == len(whole.tokens) else "stream_equals_result"
            raise PropertyFailed(name, f"tokens {list(tokens)}, not {list(whole.tokens)}", request)
        if text != whole.text:
            raise PropertyFailed("stream_equals_result", f"text {text!r}, not {whole.text!r}", request)


OF_THE_GHOST = Expectations(ghost_alone)
