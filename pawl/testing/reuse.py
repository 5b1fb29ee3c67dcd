"""A row or a slot that is used again carries nothing of the request before: it is as in an engine just made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import structs

from pawl.gpu.ghost.draws import GhostDraws
from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.requests import RequestTable
from pawl.lifecycle.step import SlotAssignment
from pawl.memory.arrays import Int32s

NOT_THE_REQUESTS = {
    "attempt": "counts departures of whoever had the row",
    "slot": "is written when the request is admitted",
    "tokens": "beyond the prompt nobody reads",
}
"""Columns of the table that a new request does not begin -> why."""


def left_in_row(table: RequestTable, row: int, prompt: Int32s) -> Iterator[str]:
    """Columns in which a row that was just opened differs from the only row of a new table. Known tokens behind
    `prompt`, which may be longer than the table is wide, are output from elsewhere."""
    fresh = RequestTable(1, table.tokens.shape[1] - 1)
    output = table.tokens[row, len(prompt) : table.num_tokens[row]]
    place = int(table.priority[row]), float(table.deadline[row])
    fresh.open(table.info(row), np.concatenate((prompt, output)), *place, len(output))
    yield from (name for name in _differing(vars(table), row, vars(fresh)) if name not in NOT_THE_REQUESTS)


class WatchedGhost(Ghost):
    """A ghost that compares each slot that is used again with one of a new ghost."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.carried: list[str] = []
        """What slots have kept, in words."""
        self._used: set[int] = set()

    def _admit(self, admissions: Sequence[SlotAssignment]) -> None:
        super()._admit(admissions)
        for admission in admissions:
            if admission.slot in self._used:
                fresh = GhostDraws(1, None)
                plain = structs.replace(admission.sampling, grammar=None)
                fresh.admit([structs.replace(admission, slot=0, sampling=plain)])
                differing = _differing(vars(self._draws), admission.slot, vars(fresh))
                self.carried += [f"slot {admission.slot} keeps {name} of the request before" for name in differing]
            self._used.add(admission.slot)


def _differing(mine: Mapping[str, Any], at: int, fresh: Mapping[str, Any]) -> Iterator[str]:
    """Names of arrays whose entry `at` is not the first one of the fresh ones."""
    for name, column in fresh.items():
        alike = not isinstance(column, np.ndarray) or column.shape[:1] != (1,)
        if not alike and mine[name][at].tobytes() != column[0].tobytes():
            yield name.lstrip("_")
