"""One answer from those of several replicas."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from msgspec import structs

from pawl.actors.messages.control import Reply

WRONG_STATE = "wrong_state"
"""In the body of a reply: what was asked is right at another time."""


def merged(replies: Sequence[Reply], counts: Collection[str] = ()) -> Reply:
    """It was done where all have done it; else those speak who have not. `counts`: fields of the body that are added
    up though they are equal, lists of them place by place."""
    speaking = [reply for reply in replies if not reply.ok] or replies
    body = _merged([reply.body for reply in replies], counts)
    return Reply(0, speaking is replies, _words(speaking), body, unserved=any(reply.unserved for reply in replies))


def merged_of_ready(replies: Sequence[Reply], counts: Collection[str] = ()) -> Reply:
    """The same of those that had begun what is ended here, where some have: one that joined later may not have. What
    the others say is told as well."""
    ready = [reply for reply in replies if not reply.body.get(WRONG_STATE)]
    reply = merged(ready or replies, counts)
    return structs.replace(reply, message=_words(replies)) if reply.ok else reply


def first_refusal(replies: Sequence[Reply]) -> Reply:
    """One speaks for all: the first that refused, else the first."""
    return next((reply for reply in replies if not reply.ok), replies[0])


def _words(replies: Sequence[Reply]) -> str:
    return " | ".join(dict.fromkeys(reply.message for reply in replies if reply.message))


def _merged(values: Sequence[Any], counts: Collection[str], name: str = "") -> Any:
    first = values[0]
    if isinstance(first, Mapping) and all(isinstance(value, Mapping) for value in values):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _merged([value[key] for value in values if key in value], counts, key) for key in keys}
    if name not in counts and all(value == first for value in values):
        return first
    if name in counts and all(isinstance(value, list) for value in values):
        return [_merged(place, counts, name) for place in zip(*values, strict=True)]
    if all(isinstance(value, bool) for value in values):
        return all(values)
    if all(isinstance(value, int | float) for value in values):
        return sum(values)
    if all(isinstance(value, str) for value in values):
        return " | ".join(dict.fromkeys(values))
    return [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]


class Gathering:
    """Waits for the replies of so many replicas; `done` is called with those that came of replicas which `serves` still
    knows, or with all where none of them does, in the order of their numbers: once, if it does not fail."""

    def __init__(
        self, numbers: Sequence[int], serves: Callable[[int], bool], done: Callable[[Mapping[int, Reply]], object]
    ) -> None:
        self._left = set(numbers)
        self._serves = serves
        self._done = done
        self._replies: dict[int, Reply] = {}
        self.over = False
        """`done` was called."""

    def answered(self, number: int, reply: Reply) -> None:
        """This replica has answered, or will not. What it says of that a second time does not count."""
        if self.over:
            return
        self._left.discard(number)
        self._replies[number] = reply
        if not self._left:
            replies = dict(sorted(self._replies.items()))
            serving = {number: reply for number, reply in replies.items() if self._serves(number)}
            self._done(serving or replies)
            self.over = True
