"""Choices drawn by Hypothesis, so that a workload and its schedule are found and shrunk together.

Only deviations from the fair schedule are drawn: how many fair decisions until the next one (0: no more come), which
option then, and for how many decisions those that were passed over are kept waiting. The smallest draws are the fair
schedule, so that is what Hypothesis shrinks towards. Needs Hypothesis; nothing else in this package imports it.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from pawl.actors.simulation.choice import Kind, Option
from pawl.actors.simulation.strategies.simple import Strategy

MOST_FAIR = 15
"""Fair decisions between two deviations, at most."""
MOST_KEPT = 40
"""Decisions for which somebody is kept waiting, at most."""
MOST_DEVIATIONS = 60
"""Hypothesis gives up on examples with too many draws."""


class Drawn(Strategy):
    """One schedule, from the `data` of one example."""

    name = "hypothesis"

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self._gaps = st.integers(0, MOST_FAIR + 1)
        self._waits = st.integers(0, MOST_KEPT)
        self._num_left = MOST_DEVIATIONS
        self._fair_left = self._draw_gap()
        self._kept: frozenset[str] = frozenset()
        self._kept_left = 0

    def _draw_gap(self) -> int | None:
        """Fair decisions before the next deviation; None: no more deviations."""
        if self._num_left == 0:
            return None
        self._num_left -= 1
        drawn = self._data.draw(self._gaps, label="fair decisions + 1, or 0 for the rest")
        return drawn - 1 if drawn else None

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        if self._fair_left == 0:
            return self._deviate(kind, options)
        if self._fair_left is not None:
            self._fair_left -= 1
        return self._first_not_kept(kind, options)

    def _deviate(self, kind: Kind, options: Sequence[Option]) -> int:
        index = self._data.draw(st.integers(0, len(options) - 1), label=f"option of {len(options)}")
        if index and kind is Kind.NEXT:
            self._kept_left = self._data.draw(self._waits, label="decisions for which others wait")
            self._kept = frozenset(option.owner for option in options[:index])
        self._fair_left = self._draw_gap()
        return index

    def _first_not_kept(self, kind: Kind, options: Sequence[Option]) -> int:
        if self._kept_left == 0 or kind is not Kind.NEXT:
            return 0
        self._kept_left -= 1
        for index, option in enumerate(options):
            if option.owner not in self._kept and not option.fault:
                return index
        return 0
