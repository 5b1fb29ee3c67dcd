"""The driver of one actor in a simulated run: one step of its cell for each choice."""

from __future__ import annotations

from pawl.actors.runtime.receiver import Phase
from pawl.actors.simulation.cell import SimulatedCell
from pawl.actors.simulation.choice import LINE
from pawl.actors.simulation.network import Carrier, Network


class SimulatedDriver:
    """Runs one actor (a `Driver`), one step for each choice. Among the ready events while there is something to do."""

    fault = False

    def __init__(self, cell: SimulatedCell, network: Network) -> None:
        self.cell = cell
        self.owner = self.target = cell.name
        self._network = network
        self._queued = self._halted = False
        self._outbox: Carrier | None = network.add_outbox(cell.mailbox, cell.name)
        if self._outbox is not None:
            self._outbox.on_empty = self.rearm
        cell.mailbox.wake = self.make_ready

    @property
    def label(self) -> str:
        return self.cell.label()

    @property
    def event(self) -> tuple[str, int]:
        return self.cell.label(), sum(self.cell.mailbox.taken)

    def start(self) -> None:
        self.make_ready()

    def make_ready(self) -> None:
        """There is something to do; not before the outbox is empty."""
        if not (self._queued or self._halted or self._sending()):
            self._queued = True
            self._network.ready.append(self)

    def _sending(self) -> bool:
        return self._outbox is not None and len(self._outbox.envelopes) > 0

    def take_out(self) -> None:
        """Leave the ready events, to happen in another way than by `run`."""
        self._network.ready.remove(self)

    def halt(self) -> None:
        """Do nothing until `go_on`."""
        self._halted = True
        if self._queued:
            self.take_out()
            self._queued = False

    def go_on(self) -> None:
        """After `halt`."""
        self._halted = False
        if not self._queued:
            self.rearm()

    def run(self) -> None:
        """One step of the actor."""
        self._queued = False
        cell = self.cell
        if self._network.touched is not None:
            self._touch(self._network.touched)
        if cell.phase is Phase.NEW:
            cell.begin()
        else:
            cell.step()
        self.rearm()

    def _touch(self, touched: set[str]) -> None:
        """Note what the step depends on."""
        cell = self.cell
        touched.add(LINE + cell.name)
        # `started` does not look at the mailbox.
        if cell.phase is not Phase.NEW:
            touched.add(cell.name)
            # What it takes may let them go.
            touched.update(cell.mailbox.held_names())

    def rearm(self) -> None:
        """After a step, and when the outbox has become empty: line up again, or wait to be woken."""
        if self.cell.busy() or not self.cell.mailbox.park():
            self.make_ready()
