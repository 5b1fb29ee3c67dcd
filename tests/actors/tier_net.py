"""Scheduler, worker, storage and a ghost model in one thread; every delivery is the choice of a test.

Messages wait in one queue for each (sender, receiver, lane). The order within a queue is kept, and DATA never overtakes
CONTROL of the same sender; nothing else is promised. What moves pages may be lost or doubled on the way where a test
says so; requests and steps are not.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from pawl.actors.gateway import Gateway
from pawl.actors.messages.transfer import PagesToWorker, ToStorage
from pawl.actors.names import NAMES
from pawl.actors.recorder import Recorder
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.storage import Storage
from pawl.actors.tiers.files import FileStore
from pawl.actors.tiers.store import TierStore
from pawl.actors.tiers.tier_client import LeaseEnded
from pawl.build.ghost import GhostSource
from pawl.build.parts import Parts
from pawl.build.wiring import engine_actors
from pawl.gpu.ghost.oracle import expected, expected_pages
from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.states import Cause
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.select import LoopConfig
from pawl.loops.tiers import TierConfig
from pawl.memory.prefix.namespace import namespace_of
from pawl.memory.tiers.host import HostPool
from pawl.memory.tiers.keys import page_keys
from pawl.testing.expectations import vocabulary
from pawl.testing.replica import MemoryTrace
from tests.actors.heard import Heard, asking
from tests.loops.driver import first_record

PAGE_SIZE = 4
PAGE_BYTES = 16 * PAGE_SIZE

Edge = tuple[str, str, Lane]


class NetContext:
    """The world of one actor of the net."""

    def __init__(self, net: Net, name: str) -> None:
        self.name = name
        self.random = random.Random(0)
        self._net = net

    def now(self) -> float:
        return self._net.now_s

    def wall(self) -> float:
        return self._net.now_s

    def send(self, to: str, message: Any, lane: Lane = Lane.DATA) -> bool:
        self._net.post(self.name, to, message, lane)
        return True

    def after(self, delay_s: float, message: Any) -> None:
        if isinstance(message, LeaseEnded):
            self._net.leases.append(message)


class Net(Heard):
    """Everything between a prompt and its tokens."""

    def __init__(
        self,
        *,
        host_pages: int = 64,
        files: FileStore | None = None,
        write_policy: str = "write-through",
        make_runner: Callable[[LoopConfig], Any] | None = None,
        page_bytes: int = PAGE_BYTES,
        tiers: dict[str, Any] | None = None,
        **loop: Any,
    ) -> None:
        """With `make_runner`, a model takes the ghost's place."""
        shape = {"num_pages": 32, "page_size": PAGE_SIZE, "max_context": 96, "max_running": 4, "prefill_chunk": 16}
        config = LoopConfig(
            **(shape | loop),
            tiers=TierConfig(layout="ghost", write_policy=write_policy, **(tiers or {})),
        )
        super().__init__()
        self.now_s = 0.0
        self.queues: dict[Edge, deque[tuple[int, Any]]] = {}
        """Messages with their numbers in the order of sending."""
        self._num_sent = 0
        self.leases: list[LeaseEnded] = []
        self.replies: list[Any] = []
        """What the gateway was told."""
        self.tamper: Callable[[Any], list[Any]] = lambda message: [message]
        """What becomes of a message about pages when it is posted."""
        self.haunted = make_runner is None
        """Whether the worker's model is a ghost, whose pages can be checked."""
        self.ghost = (make_runner or Ghost.for_shape)(config)
        self.store = TierStore(HostPool(host_pages, page_bytes), files, eager=write_policy != "write-back")
        recorder: Any = MemoryTrace()
        begun = first_record(config)
        self.records: list[Any] = [begun]
        parts = Parts(
            source=GhostSource(),
            vocabulary=vocabulary(),
            runner=self.ghost,
            loop_config=config,
            recorder=Recorder(recorder, begun),
            started=begun,
            storage=Storage(self.store),
        )
        specs = engine_actors(parts, Gateway(), 600.0)
        played = (NAMES.scheduler, NAMES.worker, NAMES.storage)
        self.actors: dict[str, Actor] = {spec.name: spec.actor for spec in specs if spec.name in played}
        self.scheduler: Any = self.actors[NAMES.scheduler]
        self.storage, self.worker = self.actors[NAMES.storage], self.actors[NAMES.worker]
        self._truth: dict[bytes, bytes] = {}
        """What the page of a key must hold, from prompts alone."""
        for name, actor in self.actors.items():
            actor.context = NetContext(self, name)
            actor.started()

    @property
    def loop(self) -> Any:
        return self.scheduler.loop

    @property
    def tiers(self) -> LowerTiers:
        return self.scheduler.loop.companion(LowerTiers)

    # ---- messages ----

    def post(self, sender: str, to: str, message: Any, lane: Lane) -> None:
        if to == NAMES.detokenizer:
            self.hear(message)
        elif to == NAMES.recorder:
            self.records.extend(message.records)
        elif to == NAMES.gateway:
            self.replies.append(message)
        elif to in self.actors:
            about_pages = isinstance(message, PagesToWorker | ToStorage) or sender == "storage"
            copies = self.tamper(message) if about_pages else [message]
            self._num_sent += 1
            self.queues.setdefault((sender, to, lane), deque()).extend((self._num_sent, copy) for copy in copies)

    def pending(self) -> list[Edge]:
        """Queues whose oldest message may arrive now, in the order in which they were first used."""
        return [edge for edge, queue in self.queues.items() if queue and not self._overtakes(edge)]

    def _overtakes(self, edge: Edge) -> bool:
        sender, to, lane = edge
        urgent = self.queues.get((sender, to, Lane.CONTROL))
        return lane == Lane.DATA and bool(urgent) and urgent[0][0] < self.queues[edge][0][0]

    def deliver(self, edge: Edge) -> None:
        """Hand over the oldest message of a queue, and let its receiver settle."""
        _, message = self.queues[edge].popleft()
        actor = self.actors[edge[1]]
        assert isinstance(message, actor.accepts)
        self.now_s += 0.001
        actor.receive(message)
        actor.settled()
        self.check()

    def check(self) -> None:
        """Properties of memory and tiers, and every page that is called by a key holds what the key stands for."""
        self.loop.check_all()
        if not self.haunted:
            return
        content = self.ghost.memory.store.data
        for page, key in self.tiers.device._key_of.items():
            assert content[page].tobytes() == self._truth[key], f"page {page} is not what its key says"
        for key, block in self.store.host.items():
            assert block.tobytes() == self._truth[key], "a page in host memory is not what its key says"

    def end_lease(self, index: int = 0) -> None:
        """The oldest lease (or another one) ends now."""
        self.now_s += 2.0
        self.scheduler.receive(self.leases.pop(index))
        self.scheduler.settled()
        self.check()

    def turn(self) -> None:
        """Let the scheduler settle once more, as a timer would."""
        self.scheduler.settled()

    def rest(self, limit: int = 20_000) -> None:
        """Deliver until nothing is left; leases end only where nothing else goes on."""
        for _ in range(limit):
            edges = self.pending()
            if edges:
                self.deliver(edges[0])
            elif self.leases:
                self.end_lease()
            else:
                assert self.loop.idle, "nothing is under way, but requests are live"
                return
        raise AssertionError(f"no rest within {limit} deliveries")

    # ---- requests ----

    def submit(self, request: int, prompt: list[int], max_new_tokens: int = 4, namespace: str = "") -> None:
        self._learn(prompt + expected(prompt, max_new_tokens), namespace)
        self.scheduler.receive(asking(request, prompt, max_new_tokens, namespace))
        self.scheduler.settled()

    def _learn(self, tokens: list[int], salt: str) -> None:
        root = self.tiers.device.root(namespace_of(salt=salt, weights=self.scheduler.config.weights))
        keys = page_keys(root, np.array(tokens, np.int32), PAGE_SIZE)
        for key, block in zip(keys, expected_pages(tokens, PAGE_SIZE), strict=True):
            self._truth[key] = block.tobytes()

    def ask(self, request: int, prompt: list[int], max_new_tokens: int = 4, namespace: str = "") -> list[int]:
        """One request from beginning to rest; its tokens."""
        self.submit(request, prompt, max_new_tokens, namespace)
        self.rest()
        assert self.ended[request].cause == Cause.LENGTH
        return self.tokens[request]

    def forget_device(self) -> None:
        """Drop what the device has cached, as pressure would; lower tiers keep theirs. The net must be at rest."""
        memory = self.loop.memory
        eviction = memory.cache.evict(memory.cache.evictable)
        memory.pages.evict(eviction.pages, eviction.fence)
        self.turn()
        self.rest()
