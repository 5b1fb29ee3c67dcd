"""A prefill and a decode replica in one simulated system: schedulers, ghosts, storages and the desk are real."""

from __future__ import annotations

from typing import Any

from pawl.actors.messages.generate import Opened, StepTokens
from pawl.actors.messages.hand_over import DecoderUp, PrefillerDown, PrefillerUp
from pawl.actors.names import Names
from pawl.actors.prefill_desk import PrefillDesk
from pawl.actors.runtime.actor import Actor, Down, Lane, Overflow
from pawl.actors.scheduler import Scheduler
from pawl.actors.simulation.choice import ChoiceSource
from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.network import no_wires
from pawl.actors.simulation.system import SimulatedSystem
from pawl.actors.storage import Storage
from pawl.actors.tiers.store import TierStore
from pawl.actors.worker import Worker
from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.records import Record
from pawl.lifecycle.states import Cause
from pawl.loops.handing_over import HandingOver
from pawl.loops.loop import Loop
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.orders.requests import Abort
from pawl.loops.remote_prefill import RemotePrefill
from pawl.loops.saving import WritePolicy
from pawl.loops.select import LoopConfig, Role
from pawl.loops.tiers import RemoteConfig, TierConfig
from pawl.memory.tiers.host import HostPool
from tests.actors.heard import Heard, asking

PAGE_SIZE = 4
DESK = "p.desk"


def replica(prefix: str, **others: Any) -> Names:
    """Names of one replica's actors."""
    each = ("scheduler", "worker", "storage", "grammar", "stager", "groups", "watchdog", "recorder")
    return Names(**({name: f"{prefix}.{name}" for name in each} | others))


DECODE = replica("d")
PREFILL = replica("p", detokenizer=DESK)


def between(sender: str, receiver: str) -> bool:
    """Whether these are in different processes."""
    return sender.startswith("p.") != receiver.startswith("p.")


class Listener(Heard, Actor):
    """Stands where the detokenizer does."""

    accepts = Opened | StepTokens

    def receive(self, message: Any) -> None:
        self.hear(message)


class Introducer(Actor):
    """Does what the router does: tells both sides of each other, and the decode replica of a death."""

    accepts = Down

    def started(self) -> None:
        self.context.send(DESK, DecoderUp(DECODE.scheduler, DECODE.storage), Lane.CONTROL)
        self.context.send(DECODE.scheduler, PrefillerUp(DESK), Lane.CONTROL)

    def receive(self, message: Down) -> None:
        self.context.send(DECODE.scheduler, PrefillerDown(DESK, PREFILL.storage), Lane.CONTROL)


class Quiet(Actor):
    """Takes what a watchdog, a recorder and a grammar actor are told."""

    accepts = object

    def receive(self, message: Any) -> None: ...


class Apart:
    """The two sides, and a client of the decode replica."""

    def __init__(
        self,
        source: ChoiceSource,
        *,
        faults: Faults | None = None,
        host_pages: int = 64,
        max_pages: int = 16,
        pacing: str = "overlap",
        lease_s: float = 5.0,
        wires: bool = False,
        without: str = "",
    ) -> None:
        """With `wires` the two sides are in different processes; nobody is spawned under the name `without`."""
        shape: dict[str, Any] = {
            "num_pages": 32,
            "page_size": PAGE_SIZE,
            "max_context": 96,
            "max_running": 4,
            "prefill_chunk": 8,
            "pacing": pacing,
        }
        is_wire = between if wires else no_wires
        self.system = SimulatedSystem(source, faults=faults, is_wire=is_wire)
        remote = RemoteConfig(max_pages=max_pages, lease_s=lease_s)
        decode = LoopConfig(**shape, tiers=TierConfig(layout="ghost"), role=Role.DECODE, remote=remote)
        policy = WritePolicy.HAND_OVER.value
        prefill = LoopConfig(**shape, tiers=TierConfig(layout="ghost", write_policy=policy), role=Role.PREFILL)
        self.listener = Listener()
        self.records: list[Record] = []
        self.ghosts = {"d": Ghost.for_shape(decode), "p": Ghost.for_shape(prefill)}
        self.storages: dict[str, Storage] = {}
        self.schedulers: dict[str, Scheduler] = {}
        for side, config, names in (("p", prefill, PREFILL), ("d", decode, DECODE)):
            store = TierStore(HostPool(host_pages, self.ghosts[side].page_bytes), None, eager=True)
            self.storages[side] = Storage(store, names)
            self.schedulers[side] = Scheduler(config, 60.0, None, names)
            self.system.spawn(self.schedulers[side], names.scheduler)
            if names.worker != without:
                self.system.spawn(Worker(self.ghosts[side], names), names.worker, overflow=Overflow.HOLD)
            self.system.spawn(self.storages[side], names.storage)
            for quiet in (names.watchdog, names.recorder, names.grammar):
                self.system.spawn(Quiet(), quiet)
        self.desk = PrefillDesk(PREFILL)
        self.system.spawn(self.desk, DESK)
        self.system.spawn(self.listener, "detokenizer", overflow=Overflow.HOLD)
        self.system.spawn(Introducer(), "router")
        for name in (DESK, PREFILL.scheduler, PREFILL.worker, PREFILL.storage):
            if name != without:
                self.system.watch("router", name)
        self.system.start()

    @property
    def loop(self) -> Loop:
        """Of the decode replica."""
        return self.schedulers["d"].loop

    @property
    def remote(self) -> RemotePrefill:
        return self.loop.companion(RemotePrefill)

    def submit(self, request: int, prompt: list[int], max_new_tokens: int = 4, salt: str = "") -> None:
        self.system.send(DECODE.scheduler, asking(request, prompt, max_new_tokens, salt))

    def abort(self, request: int) -> None:
        self.system.send(DECODE.scheduler, Abort((request,), Cause.CLIENT), Lane.CONTROL)

    def rest(self, sides: str = "pd", but: str = "") -> None:
        """Until nobody waits on these sides and, of both, nothing is on its way `but` what is named."""

        def at_rest() -> bool:
            left = [] if sides == "d" else [each for each in self.left_over if each != but]
            return not (left or self.system.network.ready) and all(self.schedulers[s].loop.idle for s in sides)

        self.system.run(at_rest)
        for side in sides:
            self.schedulers[side].loop.check_all()

    @property
    def left_over(self) -> list[str]:
        """What is still open somewhere: nothing, at rest."""
        left = {
            "prefills": self.remote.statistics()["receiving"] + self.remote.statistics()["reserving"],
            "jobs of the desk": self.desk.num_open,
            "pages under way": not self.storages["p"].outgoing.idle,
            "pages expected": not self.storages["d"].incoming.idle,
        }
        return [name for name, count in left.items() if count]


def companions(loop: Loop) -> list[type]:
    """Of a loop, in order."""
    return [type(each) for each in loop.companions]


SIDES = {"d": [RemotePrefill, LowerTiers], "p": [LowerTiers, HandingOver]}
