"""The weights that are served, and an update of them: staged beside the old ones, exchanged between two steps.

    UpdateWeights ──► stage ──► WeightsStaged ──► (steps in flight come back) ──► swap ──► WeightsSwapped
    PutWeights ─────►   └───────────────── WeightsFailed ─────────────────────────┘

PutWeights may bring them in parts: until the last one has come, those before it are kept where they are staged.

Of two versions none reads what the other computed: at the exchange whoever runs starts again from its known tokens, the
prefix cache is emptied, and everybody's namespace names the new weights. A failure before that changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from pawl.lifecycle.machines.memory import MemoryTag, ResidencyEvent
from pawl.lifecycle.machines.weights import WEIGHTS, WeightEvent, Weights
from pawl.lifecycle.namespaces import under
from pawl.lifecycle.snapshot import Plain
from pawl.lifecycle.states import Cause
from pawl.loops.loop import Loop
from pawl.loops.recovery import lose_pages
from pawl.loops.residency import resident

BUSY = "another update of the weights is under way"
DONE = "Succeeded to update model weights."
KEPT = "Kept until the last part of these weights comes."


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """One update under way."""

    ticket: int
    """Counts updates; what is told of another one is late."""
    asker: int
    """The number under which its outcome is waited for; 0: nobody waits."""
    source: str
    version: str | None
    """What replies will call the new weights; None: what they call the old ones."""
    abort: bool
    """Who is live at the exchange ends."""
    last: bool = True
    """No further part of it is to come."""
    fingerprint: str = ""
    """Of the new weights, once they are staged."""


class Served(msgspec.Struct, frozen=True):
    """One version of the weights."""

    version: str
    """What replies call it."""
    fingerprint: str
    """Tells it from others: the same weights have the same."""
    source: str = ""
    """Where an update had it from; "": it is what the engine started with."""


class WeightKeeper:
    """Which weights the loop's steps are computed with."""

    def __init__(
        self,
        loop: Loop,
        served: Served,
        exchanged: Callable[[Served], None],
        answer: Callable[[int, bool, str], None],
    ) -> None:
        """`exchanged` hears of what is served from now on, `answer` of the outcome of an update."""
        self.phase = WEIGHTS.start
        self.served = served
        self.update: Update | None = None
        self._told = served
        """What `exchanged` knows, who knows what is served at the start."""
        self._loop = loop
        self._exchanged = exchanged
        self._answer = answer
        self._num_updates = 0

    @property
    def swapping(self) -> bool:
        """No step may be launched."""
        return self.phase is Weights.SWAPPING

    @property
    def updating(self) -> bool:
        """New weights are being laid out or exchanged; between two parts they are not."""
        return self.phase in (Weights.STAGING, Weights.SWAPPING)

    def begin(
        self,
        source: str,
        version: str | None,
        abort: bool,
        asker: int,
        now: float,
        *,
        last: bool = True,
        parts: bool = False,
    ) -> Update | None:
        """Somebody wants other weights; None while an update is under way. `parts`: some of them, and those that were
        gathered for a version of this name belong to them. Whatever else was gathered is dropped."""
        gathered = self.update if self.phase is Weights.GATHERING else None
        if self.update is not None and gathered is None:
            return None
        if gathered is None or not parts or gathered.version != version:
            self._num_updates += 1
        ticket = self._num_updates
        self.update = Update(ticket=ticket, asker=asker, source=source, version=version, abort=abort, last=last)
        self._move(WeightEvent.UPDATE, now)
        return self.update

    def staged(self, ticket: int, fingerprint: str, now: float) -> None:
        """The new weights fit, and lie beside the old ones."""
        update = self.update
        if update is None or not self._is(ticket, Weights.STAGING):
            return
        if update.last:
            self.update = msgspec.structs.replace(update, fingerprint=fingerprint)
            self._move(WeightEvent.STAGED, now)
        else:
            self.update = msgspec.structs.replace(update, asker=0)
            self._move(WeightEvent.PART, now)
            self._answer(update.asker, True, KEPT)

    def failed(self, ticket: int, message: str, now: float) -> None:
        """The new weights cannot be had."""
        if self._is(ticket, Weights.STAGING, Weights.GATHERING, Weights.SWAPPING) and self.update is not None:
            asker = self.update.asker
            self._move(WeightEvent.FAILED, now)
            self.update = None
            self._answer(asker, False, message)

    def swapped(self, ticket: int, now: float) -> Update | None:
        """The worker has exchanged them, and no step is in flight. The update that has ended so; None for late news.

        Whatever fails here, the loop recovers: told again, it is done again; where it was done, `renew` is left."""
        update = self.update
        if update is None or not self._is(ticket, Weights.SWAPPING):
            return None
        loop = self._loop
        if loop.in_flight:
            raise AssertionError("weights were exchanged while a step was in flight")
        served = Served(update.version or self.served.version, update.fingerprint, update.source)
        resident(loop, ResidencyEvent.REPLACE, [MemoryTag.WEIGHTS], now)
        self._move(WeightEvent.SWAPPED, now, served)
        self.update = None
        self._tell()
        self._answer(update.asker, True, DONE)
        for row in loop.queues.oldest_first().tolist():
            loop.requests.retract(row, Cause.WEIGHTS, now)
        lose_pages(loop, now)
        self.renew()
        loop.glance()
        return update

    def rename(self, version: str, now: float) -> None:
        """Replies call the weights that serve so from now on."""
        self._move(WeightEvent.RENAMED, now, msgspec.structs.replace(self.served, version=version))
        self._tell()

    def _tell(self) -> None:
        self._exchanged(self.served)
        self._told = self.served

    def recovered(self, message: str, now: float) -> None:
        """The loop has failed in the middle of something: that new weights are asked for, or lie ready, or which are
        served, may be lost."""
        if self.update is not None and self.phase in (Weights.STAGING, Weights.GATHERING):
            self.failed(self.update.ticket, message, now)
        if self._told is not self.served:
            self._tell()
        self.renew()

    def renew(self) -> None:
        """Whoever is live is served under the weights that are served."""
        if self.phase is Weights.SERVING:
            self.update = None
        table = self._loop.table
        for row in table.live_rows().tolist():
            info = table.info(row)
            renewed = under(info.namespace, self.served.fingerprint)
            if renewed != info.namespace:
                info.namespace = renewed
                info.num_older = int(table.num_tokens[row] - table.num_prompt[row])

    def _is(self, ticket: int, *states: Weights) -> bool:
        """Whether the news is of the update under way, and can be true."""
        return self.update is not None and self.update.ticket == ticket and self.phase in states

    def _move(self, event: WeightEvent, now: float, served: Served | None = None) -> None:
        """Take an edge; these weights serve then, None: the same."""
        served, phase = served or self.served, WEIGHTS.next(self.phase, event)
        self._loop.journal.weights(self.phase, event, phase, served.version, served.fingerprint, now)
        self.phase, self.served = phase, served

    # ---- checkpoints ----

    def snapshot(self) -> Plain:
        """All that decides."""
        served, update = msgspec.to_builtins(self.served), msgspec.to_builtins(self.update)
        return {"state": str(self.phase), "served": served, "update": update, "updates": self._num_updates}

    def restore(self, plain: Plain) -> None:
        """Go on from a snapshot."""
        self.phase = Weights(plain["state"])
        self.served = msgspec.convert(plain["served"], Served)
        self.update = msgspec.convert(plain["update"], Update | None)
        self._num_updates = plain["updates"]
