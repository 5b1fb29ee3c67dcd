"""Choices drawn by Hypothesis, so that a workload and its schedule are found and shrunk together.

Only deviations from the fair schedule are drawn: how many fair decisions until the next one, and which option then. 0
means that no more come, so what Hypothesis shrinks towards is the fair schedule. Needs Hypothesis; nothing else in this
package imports it.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from actors.runtime.choice import Kind, Option
from actors.runtime.strategies.simple import Strategy

MOST_FAIR = 15
"""Fair decisions between two deviations, at most."""
MOST_DEVIATIONS = 100
"""Hypothesis gives up on examples with too many draws."""


class Drawn(Strategy):
    """One schedule, from the `data` of one example."""

    name = "hypothesis"

    def __init__(
        self, data: st.DataObject, *, most_fair: int = MOST_FAIR, most_deviations: int = MOST_DEVIATIONS
    ) -> None:
        self._data = data
        self._gaps = st.integers(0, most_fair + 1)
        self._most_deviations = most_deviations
        self._num_deviations = 0
        self._fair_left: int | None = self._draw_gap()

    def _draw_gap(self) -> int | None:
        """Fair decisions before the next deviation; None: no more deviations."""
        if self._num_deviations >= self._most_deviations:
            return None
        self._num_deviations += 1
        drawn = self._data.draw(self._gaps, label="fair decisions + 1, or 0 for the rest")
        return drawn - 1 if drawn else None

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        if self._fair_left is None:
            return 0
        if self._fair_left > 0:
            self._fair_left -= 1
            return 0
        # The labels would show who ran, but the strategy must not depend on them: it is only drawn from its size.
        index = self._data.draw(st.integers(0, len(options) - 1), label=f"option of {len(options)}")
        self._fair_left = self._draw_gap()
        return index
