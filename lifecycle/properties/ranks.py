"""Who was admitted, by rank of the first admission: what the properties of admission share."""

from __future__ import annotations

from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History


class Ranks:
    """Ranks of live requests. A first admission that is undone gives none."""

    def __init__(self) -> None:
        self.of: dict[int, int] = {}
        """Live requests that were admitted, by rank of the first admission."""
        self.count = 0
        """Admissions so far."""
        self._undoable: set[int] = set()
        """Requests whose first admission is part of a step in flight."""

    def begin(self, beginning: Beginning) -> None:
        """Start from a checkpoint, at which no step is in flight."""
        table = beginning.table
        ranks = {table.info(row).request: int(table.order[row]) for row in beginning.rows}
        self.of = {request: rank for request, rank in ranks.items() if rank < beginning.num_admissions}
        self.count = beginning.num_admissions

    def admitted(self, request: int) -> None:
        """It has a slot."""
        if request not in self.of:
            self.of[request] = self.count
            self._undoable.add(request)
        self.count += 1

    def left(self, request: int) -> bool:
        """It has ended. Whether it had a rank."""
        self._undoable.discard(request)
        return self.of.pop(request, None) is not None

    def rolled_back(self, history: History) -> None:
        """A step is undone, and with it the admissions of those that were in no other."""
        for admission in history.restored:
            if admission.request in self._undoable:
                del self.of[admission.request]
        self.committed(history)

    def committed(self, history: History) -> None:
        """A step is in flight no more."""
        self._undoable.difference_update([admission.request for admission in history.step.admitted])
