"""How long steps take, and how many prompt tokens fit into one beside requests that decode.

A step of `decoding` requests and `prompts` prompt tokens is taken to cost

    alone_s + token_s * (decoding + prompts - alone)

seconds: a step without prompts took `alone_s` for the `alone` requests in it, and every position more costs `token_s`.
Both are learned from the times at which steps were launched and came back. These are in the trace, so a replay comes to
the same numbers, and so does a property.
"""

from __future__ import annotations

from math import inf

import msgspec

ALONE_WEIGHT = 1 / 4
"""Of the newest step without prompts."""
TOKEN_DECAY = 7 / 8
"""What a step with prompts keeps of its weight at the next one."""
SHARE = 3 / 4
"""Prompts may make a step longer by this share of what it takes without them, however long that is."""
SHARE_OF_WAITING = 1 / 4
"""By so much more for each request that waits and has not begun."""
MOST_SHARE = 3
"""And by no more than this, however many wait."""
MEASURED_EVERY = 64
"""Steps with prompts after which one without shows what requests that decode take alone."""


class StepTimes(msgspec.Struct):
    """Of one loop. All that a checkpoint keeps, as no step is in flight then."""

    alone: int = 0
    alone_s: float = 0.0
    beyond: float = 0.0
    """Positions of steps with prompts, beyond those of one without; the newest steps count most."""
    beyond_s: float = 0.0
    """What these took."""
    mixed: int = MEASURED_EVERY
    """Steps with prompts, beside requests that decode, since one without."""
    resolved_at: float = 0.0
    in_flight: list[tuple[float, int, int]] = []
    """Steps, oldest first: when each was launched, its requests that decode, its prompt tokens."""

    def launched(self, decoding: int, prompts: int, now: float) -> None:
        """A step is in flight behind all others."""
        self.in_flight.append((now, decoding, prompts))

    def resolved(self, now: float) -> None:
        """The oldest step in flight has come back."""
        launched_at, decoding, prompts = self.in_flight.pop(0)
        seconds = now - max(launched_at, self.resolved_at)
        self.resolved_at = now
        if not prompts:
            if decoding != self.alone:
                self.alone_s = self.alone_seconds(decoding) if self.alone else seconds
                self.alone = decoding
            self.alone_s += (seconds - self.alone_s) * ALONE_WEIGHT
            self.mixed = 0
            return
        alone, alone_s = (self.alone, self.alone_s) if decoding else (0, 0.0)
        self.mixed += decoding > 0
        if decoding + prompts > alone:
            self.beyond = self.beyond * TOKEN_DECAY + (decoding + prompts - alone)
            self.beyond_s = self.beyond_s * TOKEN_DECAY + max(seconds - alone_s, 0.0)

    def lost(self) -> None:
        """No step is in flight any more."""
        self.in_flight.clear()

    def forget(self) -> None:
        """Something has failed half-way: learn anew, but for what is in flight."""
        self.alone, self.alone_s, self.beyond, self.beyond_s, self.mixed = 0, 0.0, 0.0, 0.0, MEASURED_EVERY

    def alone_seconds(self, decoding: int) -> float:
        """Expected of a step in which so many requests decode, without prompts."""
        token_s = self.beyond_s / self.beyond if self.beyond else 0.0
        expected_s = self.alone_s + token_s * (decoding - self.alone)
        return expected_s if decoding >= self.alone else max(expected_s, self.alone_s * decoding / self.alone)

    @property
    def measuring(self) -> bool:
        """The next step of requests that decode has no prompts: it is to show what they take alone."""
        return self.mixed >= MEASURED_EVERY and all(prompts for _, _, prompts in self.in_flight)

    def prompt_tokens(self, decoding: int, waiting: int, max_step_s: float | None, chunk: int, page_size: int) -> int:
        """How many a step may compute beside so many requests that decode, while so many wait to begin: what fits into
        its time, up to `chunk`, and a page at the least, so that prompts go on; none in a step that measures. Where
        `max_step_s` is None, or nobody decodes, its time has no bound."""
        if max_step_s is None or not decoding:
            return chunk
        if self.measuring:
            return 0
        alone_s = self.alone_seconds(decoding)
        share = min(SHARE + SHARE_OF_WAITING * waiting, MOST_SHARE)
        more_s = max(max_step_s - alone_s, share * alone_s)
        fit = more_s * self.beyond / self.beyond_s if self.beyond_s > 0 else inf
        return max(int(min(chunk, fit)), page_size)
