"""Numbers of requests. Each is given once, and says which tokenizer reads the prompt.

A long prompt is read by a tokenizer of its own, so that no short one waits behind it. Requests therefore reach a
scheduler in the order of their numbers among short ones, and among long ones, but not across. Whoever must tell a
request that is still to come from one that has been asks `Newest`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LONG = 64
"""Multiples of it are the numbers of long prompts."""


def is_long(request: int) -> bool:
    """Whether the number is one of a long prompt."""
    return request % LONG == 0


def numbers_from(first: int, count: int, long: bool) -> Sequence[int]:
    """The `count` lowest numbers of this kind from `first` on."""
    if long:
        first = -(-first // LONG) * LONG
        return range(first, first + count * LONG, LONG)
    reach = first + count + count // (LONG - 1) + 2
    return [number for number in range(first, reach) if not is_long(number)][:count]


class Newest:
    """The highest number of each kind that has come."""

    def __init__(self, short: int = 0, long: int = 0) -> None:
        self.short = short
        self.long = long

    def came(self, request: int) -> None:
        """This one has."""
        if is_long(request):
            self.long = max(self.long, request)
        else:
            self.short = max(self.short, request)

    def has_been(self, request: int) -> bool:
        """It has come, or will not any more."""
        return request <= (self.long if is_long(request) else self.short)


def passed(request: int, others: Iterable[int]) -> list[int]:
    """Those of `others` that will not come any more, now that `request` has: they were refused on their way."""
    return [other for other in others if other < request and is_long(other) == is_long(request)]
