"""What a client must get, from its own request alone: no scheduler, no neighbours, no memory to share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from actors.text.ghost import ghost_vocabulary
from actors.text.vocabulary import Vocabulary
from gpu.ghost import Ghost
from gpu.ghost_oracle import expected
from lifecycle.states import Cause
from lifecycle.step import Admission, StepBatch
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


@lru_cache(maxsize=4096)
def alone(arrival: Arrival) -> tuple[int, ...]:
    """All tokens that the request asks for, as if it were the only one and nothing stopped it."""
    if arrival.seed is None:
        return tuple(expected(arrival.prompt, arrival.max_new_tokens))
    return tuple(_sampled_alone(arrival))


def _sampled_alone(arrival: Arrival) -> list[int]:
    """A ghost with one slot and one page, one token after the other."""
    count = len(arrival.prompt)
    total = count + arrival.max_new_tokens
    ghost = Ghost(num_pages=1, page_size=total, num_slots=1, max_context=total)
    none = np.zeros(0, np.int32)
    drawn: list[int] = []
    while len(drawn) < arrival.max_new_tokens:
        first = not drawn
        batch = StepBatch(
            step=len(drawn) + 1,
            slots=np.zeros(1, np.int32),
            starts=np.array([0 if first else count + len(drawn) - 1], np.int32),
            lengths=np.array([count if first else 1], np.int32),
            tokens=np.array(arrival.prompt, np.int32) if first else none,
            chained=np.array([not first]),
            samples=np.ones(1, np.bool_),
            page_slots=np.zeros(int(first), np.int32),
            page_indices=np.zeros(int(first), np.int32),
            pages=np.zeros(int(first), np.int32),
            window_pages=None,
            admitted=(Admission(0, parameters_of(arrival), count, none, 0),) if first else (),
        )
        drawn.append(int(ghost.launch(batch).tokens[0]))
    return drawn


@lru_cache(maxsize=4096)
def stop_strings(arrival: Arrival) -> tuple[str, ...]:
    """The text of the output token that is to stop it; none when that is no whole text of its own.

    Where the number of that token is even, the last character before it belongs to the stop string as well: then the
    string stands across two tokens.
    """
    if arrival.stop_after is None:
        return ()
    tokens = alone(arrival)[: arrival.stop_after]
    before, text = vocabulary().decode(tokens[:-1]), vocabulary().decode(tokens)
    start = len(before) - 1 if arrival.stop_after % 2 == 0 else len(before)
    stop = text[max(start, 0) :]
    return (stop,) if stop and BROKEN not in text else ()


@lru_cache(maxsize=4096)
def whole_output(arrival: Arrival) -> Expected:
    """What the request gets when nobody ends it early."""
    tokens = alone(arrival)
    text = vocabulary().decode(tokens)
    for stop in stop_strings(arrival):
        place = text.find(stop)
        if place >= 0:
            count = next(n for n in range(1, len(tokens) + 1) if stop in vocabulary().decode(tokens[:n]))
            return Expected(tokens[:count], text[:place], Cause.STOP_STRING)
    return Expected(tokens, text, Cause.LENGTH)


def check_beginning(arrival: Arrival, tokens: Sequence[int], text: str, request: int | None) -> None:
    """Somebody ended the request early: it got a beginning of what it would have got. Raises PropertyFailed."""
    whole = whole_output(arrival)
    if tuple(tokens) != whole.tokens[: len(tokens)]:
        said = f"{list(tokens)} is not how {list(whole.tokens)} begins"
        raise PropertyFailed("schedule_equivalence", said, request)
    # What is left of a character when a text is cut shows as a broken one.
    if not whole.text.startswith(text.rstrip(BROKEN)):
        raise PropertyFailed("stream_equals_result", f"{text!r} is not how {whole.text!r} begins", request)


def check_whole(arrival: Arrival, tokens: Sequence[int], text: str, cause: Cause, request: int | None) -> None:
    """The request ended by itself: it got everything, and nothing after it. Raises PropertyFailed."""
    whole = whole_output(arrival)
    stops = stop_strings(arrival)
    if cause is not whole.cause or any(stop in text for stop in stops):
        said = f"{text!r} ended with {cause}, but with stop strings {stops} it is {whole.text!r} and {whole.cause}"
        raise PropertyFailed("stop_semantics" if stops else "stream_equals_result", said, request)
    if tuple(tokens) != whole.tokens:
        name = "schedule_equivalence" if len(tokens) == len(whole.tokens) else "stream_equals_result"
        raise PropertyFailed(name, f"tokens {list(tokens)}, not {list(whole.tokens)}", request)
    if text != whole.text:
        raise PropertyFailed("stream_equals_result", f"text {text!r}, not {whole.text!r}", request)
