"""Which weights serve, as the records so far say, and what others have drawn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from pawl.lifecycle.machines.weights import WeightEvent
from pawl.lifecycle.namespaces import under
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.records import Delivered, Started, Submitted, WeightsMoved

NAMING = {
    "update_weights": "weight_version",
    "put_weights": "weight_version",
    "receive_weights": "weight_version",
    "rename_weights": "new_version",
}
"""Orders that may give weights a name -> the field that has it."""


class ServedWeights:
    """The weights, and what follows from their exchange for requests that are live."""

    def __init__(self) -> None:
        self.fingerprint = ""
        self.older: dict[int, int] = {}
        """Output tokens that other weights have drawn, by row, where there are some."""

    def start(self, record: Started) -> None:
        """The engine starts with what its loop is made for."""
        self.fingerprint = fingerprint_at_start(record) or ""

    def begin(self, beginning: Beginning) -> None:
        """The records so far are gone."""
        self.fingerprint = beginning.weights.served.fingerprint
        counts = {row: beginning.table.info(row).num_older for row in beginning.rows}
        self.older = {row: count for row, count in counts.items() if count}

    def submitted(self, record: Submitted) -> None:
        """A request has come, perhaps with output."""
        self.older.pop(record.row, None)
        if record.num_older:
            self.older[record.row] = record.num_older

    def moved(
        self, record: WeightsMoved, rows: Iterable[int], submissions: dict[int, Submitted], num_output: Any
    ) -> None:
        """Where others are served from now on: so are the requests in `rows`, which have so many output tokens each."""
        if record.event is not WeightEvent.SWAPPED:
            return
        self.fingerprint = record.fingerprint
        for row in rows:
            submitted = submissions[row]
            namespace = under(submitted.namespace, record.fingerprint)
            if namespace != submitted.namespace:
                submissions[row] = msgspec.structs.replace(submitted, namespace=namespace)
                if num_output[row]:
                    self.older[row] = int(num_output[row])


class ServedName:
    """What the weights that serve are to be called, as the orders so far have it; an order without a name keeps it."""

    def __init__(self) -> None:
        self.now: str | None = None
        """None: the first record does not say."""
        self._ordered: str | None = None
        self._of_update: str | None = None

    def start(self, record: Started) -> None:
        """The engine starts with what its loop is made for."""
        loop: Any = record.config.get("loop")
        self.now = loop.get("weight_version") if isinstance(loop, dict) else None

    def begin(self, beginning: Beginning) -> None:
        """The records so far are gone."""
        update = beginning.weights.update
        self.now, self._of_update = beginning.weights.served.version, None if update is None else update.version

    def delivered(self, record: Delivered) -> None:
        """An order has reached the loop."""
        if record.kind in NAMING:
            self._ordered = record.fields.get(NAMING[record.kind])

    def moved(self, record: WeightsMoved) -> None:
        """What the order asks for that came last, or what an earlier one has begun, goes on."""
        match record.event:
            case WeightEvent.UPDATE:
                self._of_update = self._ordered
            case WeightEvent.SWAPPED:
                self.now = self._of_update or self.now
            case WeightEvent.RENAMED:
                self.now = self._ordered


def fingerprint_at_start(record: Started | None) -> str | None:
    """Of the weights with which the engine started; None where the record does not say."""
    loop: Any = record.config.get("loop") if record is not None else None
    return str(loop["weights"]) if isinstance(loop, dict) and "weights" in loop else None
