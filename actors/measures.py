"""Cheap measures: a histogram that costs one bisection an observation, and a rate over the last seconds.

Buckets are those that OpenTelemetry advises for generative AI.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

DURATION_BUCKETS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Of steps, for which OpenTelemetry advises nothing."""


class Histogram:
    """Counts of observations by upper bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        """Upper bounds, inclusive, rising; one more bucket without bound follows."""
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Histogram:
        """From what `plain` gives."""
        histogram = cls(plain["bounds"])
        histogram.counts, histogram.total = list(plain["counts"]), plain["total"]
        return histogram

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "total": self.total}

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Operation(StrEnum):
    """What a request is for, in OpenTelemetry's words."""

    CHAT = "chat"
    TEXT_COMPLETION = "text_completion"
    EMBEDDINGS = "embeddings"


class Durations:
    """How long requests of one operation took, as OpenTelemetry asks for it."""

    def __init__(self) -> None:
        self.request = Histogram(DURATION_BUCKETS_S)
        self.first_token = Histogram(FIRST_TOKEN_BUCKETS_S)
        self.output_token = Histogram(TOKEN_BUCKETS_S)
        """After the first."""

    def observe(self, opened: float, first_output: float | None, num_tokens: int, ended: float) -> None:
        """One request has ended. `first_output`: when its first token came, None where none did."""
        self.request.observe(ended - opened)
        if first_output is not None:
            self.first_token.observe(first_output - opened)
            if num_tokens > 1:
                self.output_token.observe((ended - first_output) / (num_tokens - 1))


class DurationsByOperation:
    """Those of each operation, under its name."""

    def __init__(self) -> None:
        self.chat, self.text_completion, self.embeddings = Durations(), Durations(), Durations()

    def __getitem__(self, operation: Operation) -> Durations:
        durations: Durations = getattr(self, operation)
        return durations


WINDOW_S = 10


class Rate:
    """Events per second over the last `WINDOW_S` whole seconds; keeps one count for each second."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque()

    def add(self, now: float, count: int) -> None:
        """`count` events at `now`, seconds on a clock that does not go back."""
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            count += self._seconds.pop()[1]
        elif len(self._seconds) > WINDOW_S:
            self._seconds.popleft()
        self._seconds.append((second, count))

    def per_second(self, now: float) -> float:
        """The mean over the whole seconds before the one that `now` is in."""
        second = int(now)
        return sum(count for at, count in self._seconds if second - WINDOW_S <= at < second) / WINDOW_S
