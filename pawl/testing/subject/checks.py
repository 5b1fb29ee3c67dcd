"""What a subject returns, looked at before anything is made of it: lists become tuples, and nonsense has a name."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, get_args

import numpy as np

from pawl.testing.expectations import PropertyFailed
from pawl.testing.subject.port import Accounting, Ended, Output, Segment, Step

PROPERTY = "well_formed"
MOST_ENTRIES = 1 << 16
"""Of a list. Some iterables never end, and no exception can stop those that are not Python's."""
MOST_BITS = 63
"""Of a number."""
_ENDS = get_args(Ended)


def checked_step(returned: Any, known: Iterable[int]) -> Step:
    """A step with plain tuples of plain numbers, of requests that there are."""
    step = _of_kind(returned, Step, "schedule")
    segments = tuple(_segment(each, known) for each in _listed(step.segments, "Step.segments"))
    requests = [segment.request for segment in segments]
    for request in requests:
        if requests.count(request) > 1:
            raise _nonsense(f"schedule returned two segments of request {request}")
    preempted = _numbers(step.preempted, "Step.preempted")
    _check_known(preempted, known, "preempted")
    return Step(segments, preempted)


def _segment(returned: Any, known: Iterable[int]) -> Segment:
    segment = _of_kind(returned, Segment, "schedule")
    request, start, count = (_number(getattr(segment, name), name) for name in ("request", "start", "count"))
    _check_known((request,), known, "scheduled")
    if start < 0 or count < 1:
        raise _nonsense(f"schedule returned a segment of {count} positions from position {start} on", request)
    pages = _numbers(segment.pages, "Segment.pages")
    tokens = None if segment.tokens is None else _numbers(segment.tokens, "Segment.tokens")
    if tokens is not None and len(tokens) != count:
        raise _nonsense(f"schedule returned a segment of {count} positions with {len(tokens)} tokens", request)
    return Segment(request, start, count, pages, _flag(segment.samples, "Segment.samples"), tokens)


def checked_outputs(returned: Any, known: Iterable[int]) -> list[Output]:
    """What clients are told, of requests that there are, each at most once."""
    outputs: list[Output] = []
    for each in _listed(returned, "what apply returned"):
        output = _of_kind(each, Output, "apply")
        request = _number(output.request, "Output.request")
        _check_known((request,), known, "told about")
        if any(request == other.request for other in outputs):
            raise _nonsense(f"apply returned two outputs of request {request}")
        if output.ended not in _ENDS:
            raise _nonsense(f"apply returned the end {_short(output.ended)}, which is none of {_ENDS}", request)
        outputs.append(Output(request, _numbers(output.tokens, "Output.tokens"), output.ended))
    return outputs


def checked_accounting(returned: Any) -> Accounting:
    """Books with plain numbers."""
    books = _of_kind(returned, Accounting, "pages")
    owned = {
        _number(request, "a key of Accounting.owned"): _numbers(pages, "Accounting.owned")
        for request, pages in _mapping(books.owned, "Accounting.owned").items()
    }
    references = books.references
    if references is not None:
        counts = _mapping(references, "Accounting.references")
        references = {_number(page, "a page"): _number(count, "a count") for page, count in counts.items()}
    return Accounting(
        free=_numbers(books.free, "Accounting.free"),
        owned=owned,
        cached=_numbers(books.cached, "Accounting.cached"),
        references=references,
        requests=None if books.requests is None else _numbers(books.requests, "Accounting.requests"),
        free_slots=None if books.free_slots is None else _number(books.free_slots, "Accounting.free_slots"),
    )


def _of_kind(value: Any, kind: type, verb: str) -> Any:
    if not isinstance(value, kind):
        raise _nonsense(f"{verb} returned {_short(value)}, which is no {kind.__name__}")
    return value


def _mapping(value: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise _nonsense(f"{what} is {_short(value)}, which is no mapping")
    return value


def _listed(value: Any, what: str) -> list[Any]:
    try:
        entries = iter(value)
    except TypeError:
        raise _nonsense(f"{what} is {_short(value)}, which is no sequence") from None
    listed = list(islice(entries, MOST_ENTRIES + 1))
    if len(listed) > MOST_ENTRIES:
        raise _nonsense(f"{what} has more than {MOST_ENTRIES:,} entries")
    return listed


def _numbers(value: Any, what: str) -> tuple[int, ...]:
    return tuple([_number(each, f"an entry of {what}") for each in _listed(value, what)])


def _number(value: Any, what: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise _nonsense(f"{what} is {_short(value)}, which is no whole number") from None
    if number.bit_length() > MOST_BITS:
        raise _nonsense(f"{what} is a number of {number.bit_length()} bits: {MOST_BITS} are the most")
    return number


def _flag(value: Any, what: str) -> bool | None:
    if not (value is None or isinstance(value, bool | np.bool_)):
        raise _nonsense(f"{what} is {_short(value)}, which is none of True, False and None")
    return None if value is None else bool(value)


def _check_known(requests: Iterable[int], known: Iterable[int], verb: str) -> None:
    for request in requests:
        if request not in known:
            raise _nonsense(f"request {request} is {verb}, and nobody has sent it", request)


def _short(value: Any) -> str:
    try:
        return f"{value!r:.80}"
    except Exception:  # a number of too many digits, or a __repr__ with a fault of its own
        return f"a {type(value).__name__}"


def _nonsense(words: str, request: int | None = None) -> PropertyFailed:
    return PropertyFailed(PROPERTY, words, request)
