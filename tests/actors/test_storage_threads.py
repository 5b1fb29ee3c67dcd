"""In threads: a disk that hangs holds up nobody but the storage actor."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pawl.actors.control import Ask
from pawl.actors.control.state import GetState
from pawl.actors.gateway import Gateway
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import Ended, Generate, Opened, StepTokens, TextOptions
from pawl.actors.names import NAMES
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.storage import Storage
from pawl.actors.text.ghost import ghost_vocabulary
from pawl.actors.tiers.files import FileStore
from pawl.actors.tiers.store import TierStore
from pawl.build.ghost import GhostSource
from pawl.build.parts import Parts
from pawl.build.wiring import engine_actors, spawn_all, stop_order
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.request import SamplingParameters
from pawl.loops.select import LoopConfig
from pawl.loops.tiers import TierConfig
from pawl.memory.tiers.host import HostPool
from tests.actors.tier_disk import MemoryDisk
from tests.actors.tier_net import PAGE_BYTES, PAGE_SIZE

PATIENCE_S = 60.0
LEASE_S = 0.02


class HangingDisk(MemoryDisk):
    """Reads wait while `works` is not set; `reading` says that one does."""

    def __init__(self) -> None:
        super().__init__()
        self.works = threading.Event()
        self.works.set()
        self.reading = threading.Event()

    def read(self, path: Path, limit: int) -> bytes:
        self.reading.set()
        assert self.works.wait(PATIENCE_S)
        return super().read(path, limit)


class Listener(Actor):
    """Stands where the detokenizer is, and hands on each request's tokens and end, and what it is answered."""

    accepts = Opened | StepTokens | Reply

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[tuple[list[int], Ended]] = queue.SimpleQueue()
        self.replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._tokens: dict[int, list[int]] = {}

    def receive(self, message: Any) -> None:
        match message:
            case Opened(row):
                self._tokens[row] = []
            case Reply():
                self.replies.put(message)
            case StepTokens():
                for row, token in zip(message.rows.tolist(), message.tokens.tolist(), strict=True):
                    self._tokens[row].append(token)
                for end in message.ended:
                    self.answers.put((self._tokens[end.row], end))


class Threads:
    """An engine's actors in threads, with a listener for a detokenizer and room on the device for one prompt at a time.
    Their clock stands still: a lease ends when the test says so."""

    def __init__(self, disk: MemoryDisk) -> None:
        self.now_s = 0.0
        config = LoopConfig(
            num_pages=16,
            page_size=PAGE_SIZE,
            max_context=60,
            max_running=2,
            tiers=TierConfig(layout="ghost", lease_s=LEASE_S),
        )
        files = FileStore(Path("/nowhere"), "ghost", PAGE_BYTES, 100 * PAGE_BYTES, disk)
        self.listener = Listener()
        self.system = LocalSystem(clock=lambda: self.now_s)
        parts = Parts(
            source=GhostSource(),
            vocabulary=ghost_vocabulary(),
            runner=Ghost.for_shape(config),
            loop_config=config,
            storage=Storage(TierStore(HostPool(0, PAGE_BYTES), files, eager=True)),
        )
        self.specs = [
            spec._replace(actor=self.listener) if spec.name == NAMES.detokenizer else spec
            for spec in engine_actors(parts, Gateway(), 600.0)
        ]
        spawn_all(self.system, self.specs)
        self.system.start()
        self._request = 0

    def ask(self, prompt: list[int]) -> int:
        """One request, whose tokens must be right; how many tokens of its prompt were cached."""
        self.submit(prompt)
        return self.answer(prompt)

    def submit(self, prompt: list[int]) -> None:
        self._request += 1
        sampling = SamplingParameters(temperature=0.0, max_new_tokens=4)
        tokens = np.array(prompt, np.int32)
        request = Generate(request=self._request, rid="r", tokens=tokens, sampling=sampling, text_options=TextOptions())
        assert self.system.send(NAMES.scheduler, request)

    def answer(self, prompt: list[int]) -> int:
        """Wait for what `submit` asked for."""
        answer, end = self.listener.answers.get(timeout=PATIENCE_S)
        assert end.request == self._request
        assert answer == expected(prompt, 4)
        self.until("saving_pages", 0)
        return end.usage.cached_tokens

    def until(self, name: str, value: int) -> None:
        """Ask until the tiers' count has this value."""
        for _ in range(100_000):
            if self.tiers()[name] == value:
                return
        raise AssertionError(f"{name} never was {value}: {self.tiers()}")

    def tiers(self) -> dict[str, int]:
        """What the scheduler says about the tiers now."""
        ask = Ask(1, GetState(), reply_to=NAMES.detokenizer)
        assert self.system.send(NAMES.scheduler, ask, Lane.CONTROL)
        return self.listener.replies.get(timeout=PATIENCE_S).body["tiers"]


@pytest.fixture
def disk() -> HangingDisk:
    return HangingDisk()


@pytest.fixture
def threads(disk: HangingDisk) -> Iterator[Threads]:
    made = Threads(disk)
    yield made
    disk.works.set()
    assert made.system.stop(stop_order(made.specs), PATIENCE_S) == ()


def prompt(first: int) -> list[int]:
    return [(first + number) % 256 for number in range(41)]


def test_a_disk_that_hangs_costs_a_lease_once_and_is_used_again_when_it_answers(
    threads: Threads, disk: HangingDisk
) -> None:
    assert threads.ask(prompt(0)) == 0
    assert threads.ask(prompt(100)) == 0
    assert threads.ask(prompt(0)) == 40
    disk.works.clear()
    disk.reading.clear()
    threads.submit(prompt(100))
    assert disk.reading.wait(PATIENCE_S)
    threads.now_s += LEASE_S
    assert threads.answer(prompt(100)) == 0
    # Nobody waits for it a second time while it hangs.
    assert threads.ask(prompt(0)) == 0
    state = threads.tiers()
    assert (state["fetches_begun"], state["fetches_expired"]) == (2, 1)
    disk.works.set()
    threads.until("overdue", 0)
    assert threads.ask(prompt(100)) == 40
    assert threads.tiers()["fetches_filled"] == 2
