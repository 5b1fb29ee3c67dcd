"""Partial order sampling: random priorities of events, drawn again for those that lost a race.

X. Yuan, J. Yang, R. Gu: Partial Order Aware Concurrency Sampling, CAV 2018. Every pending event has a random priority,
and the highest happens. Events that race with it (that touch the same mailbox) then draw again, so that the order of
events that do not race, which makes no difference, does not use up the chances of those that do.
"""

from __future__ import annotations

from collections.abc import Sequence

from pawl.actors.simulation.choice import Kind, Option
from pawl.actors.simulation.strategies.simple import Randomized


class POS(Randomized):
    """Each order of racing events has a fair share of the schedules."""

    name = "pos"

    def begin(self) -> bool:
        self._priorities: dict[tuple[str, int], float] = {}
        return super().begin()

    def pick(self, kind: Kind, options: Sequence[Option]) -> int:
        if kind is not Kind.NEXT:
            return self.random.randrange(len(options))
        before = self._priorities
        pending = []
        best, chosen = -1.0, 0
        for index, option in enumerate(options):
            event = option.event
            draw = before.get(event) or self.random.random()
            pending.append((event, draw, option.target))
            if draw > best:
                best, chosen = draw, index
        target = pending[chosen][2]
        # Only what is pending and has not lost a race is remembered.
        self._priorities = {event: draw for event, draw, touches in pending if touches != target}
        return chosen
