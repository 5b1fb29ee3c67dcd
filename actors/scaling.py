"""How many replicas the load asks for: a rule and a function, without a clock of its own.

More as soon as there were enough open requests for a while, one less when there were few for a longer while. What is
few is less than half of what is enough, so the number does not go up and down with a load that stays where it is.
"""

from __future__ import annotations

from typing import NamedTuple

UP_S = 2.0
"""Seconds for which a load must be high before more are started: a burst that is over by then needs none."""
FEW = 0.5
"""Share of `Rule.at` up to which one replica less has little to do."""


class Rule(NamedTuple):
    """Between which numbers, and when."""

    least: int
    most: int
    at: int = 1
    """Open requests for each replica that are too many."""
    up_s: float = UP_S
    down_s: float = 60.0
    """Seconds for which a load must be low before one leaves."""


class Since(NamedTuple):
    """When the load became high, and when it became low, seconds of whichever clock; None: it is not."""

    high: float | None = None
    low: float | None = None


class Verdict(NamedTuple):
    """What is to be done now."""

    wanted: int
    since: Since
    due: float | None
    """When to look again if nothing changes; None: never."""


def scaled(rule: Rule, since: Since, now: float, wanted: int, num_open: int) -> Verdict:
    """How many replicas there should be where `wanted` are there or come, and have `num_open` requests between them.
    `since` is what the look before has given; empty where `wanted` has become another number meanwhile."""
    since, number = _since(rule, since, now, wanted, num_open), wanted
    if since.high is not None and since.high + rule.up_s <= now:
        number = min(rule.most, max(wanted + 1, -(-num_open // rule.at)))
    elif since.low is not None and since.low + rule.down_s <= now:
        number = wanted - 1
    if number != wanted:
        since = _since(rule, Since(), now, number, num_open)
    dues = [] if since.high is None else [since.high + rule.up_s]
    dues += [] if since.low is None else [since.low + rule.down_s]
    return Verdict(number, since, min(dues, default=None))


def _since(rule: Rule, before: Since, now: float, wanted: int, num_open: int) -> Since:
    high = wanted < rule.most and num_open >= rule.at * wanted
    low = wanted > rule.least and num_open <= FEW * rule.at * (wanted - 1)
    return Since(
        (now if before.high is None else before.high) if high else None,
        (now if before.low is None else before.low) if low else None,
    )
