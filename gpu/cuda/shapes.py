"""Which sizes of decode step have a graph of their own, and in which order they are recorded. Pure arithmetic.

A graph has fixed sizes: a number of rows, and a longest context, which bounds how many programs of the attention kernel
look for keys. A step takes the smallest graph that holds it; rows beyond its own are padding. Neither size changes the
bits of a row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

LEVELS = (2048, 8192)
"""Tokens. The grid of the attention kernel grows with the context up to 16,384 tokens, and its programs that find no
keys cost time all the same."""


class GraphShape(NamedTuple):
    """What one graph holds."""

    rows: int
    context: int
    """Tokens of the longest row, the new one included."""


def row_buckets(max_rows: int) -> tuple[int, ...]:
    """Rising counts of rows up to `max_rows`, which is the last. Padding is less than 8 rows, or at most a quarter of
    them: a padded row costs little in a product that reads the same weights anyway."""
    counts = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, max_rows + 1, 32)]
    return (*(count for count in counts if count < max_rows), max_rows)


def context_levels(max_context: int) -> tuple[int, ...]:
    """Rising longest contexts up to `max_context`, which is the last."""
    return (*(level for level in LEVELS if level < max_context), max_context)


class GraphShapes:
    """The shapes that have a graph."""

    def __init__(self, max_rows: int, max_context: int) -> None:
        """Raises ValueError for a size below 1."""
        if max_rows < 1 or max_context < 1:
            raise ValueError(f"graphs for {max_rows} rows of {max_context} tokens")
        self.rows = row_buckets(max_rows)
        self.contexts = context_levels(max_context)

    def __len__(self) -> int:
        return len(self.rows) * len(self.contexts)

    def __iter__(self) -> Iterator[GraphShape]:
        """The order of recording: the largest first, so that the others find room in the memory it took."""
        return (GraphShape(rows, context) for rows in reversed(self.rows) for context in reversed(self.contexts))

    def find(self, num_rows: int, longest: int) -> GraphShape | None:
        """The smallest shape that holds a step; None where none does, and for a step without rows."""
        row, level = bisect_left(self.rows, num_rows), bisect_left(self.contexts, longest)
        if num_rows < 1 or row == len(self.rows) or level == len(self.contexts):
            return None
        return GraphShape(self.rows[row], self.contexts[level])
