"""A run can be gone on with from any of its checkpoints: the same decisions, the same digests, to the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from pawl.lifecycle.records import DECODER, Checkpoint, Record, Started
from pawl.loops import snapshot
from pawl.loops.replay import Diverged, Replay, replay
from pawl.memory.violation import MemoryViolation
from tests.loops import test_replay
from tests.loops.driver import Driver

SHAPES: dict[str, dict[str, Any]] = {
    "radix, lru": {},
    "lfu": {"eviction": "lfu"},
    "by priority": {"eviction": "priority"},
    "mru": {"eviction": "mru"},
    "fifo": {"eviction": "fifo"},
    "nothing cached": {"cache": "none"},
    "compiled": {"cache_core": "compiled"},
    "compiled, filo": {"cache_core": "compiled", "eviction": "filo"},
    "compiled, lfu": {"cache_core": "compiled", "eviction": "lfu"},
    "two pools": {"window": 6, "num_window_pages": 14},
    "random order": {"policy": "random"},
    "longest prefix": {"policy": "lpm"},
    "depth first": {"policy": "dfs-weight"},
}
EVERY = 3
"""Steps from one checkpoint to the next."""


class Checkpointing(Driver):
    """Waits for what is in flight, then records a checkpoint, every few steps."""

    steps = 0

    def step(self) -> bool:
        went_on = super().step()
        self.steps += 1
        if self.steps % EVERY == 0:
            with pytest.MonkeyPatch.context() as bubble:
                bubble.setattr(self.intake, "turn", lambda now: None)
                while self.loop.in_flight:
                    super().step()
            snapshot.checkpoint(self.intake, self.now)
        return went_on


def recorded(monkeypatch: pytest.MonkeyPatch, seed: int, pacing: str, shape: dict[str, Any]) -> list[Record]:
    """A run with checkpoints, as a reader gets it."""

    def make(**settings: Any) -> Driver:
        driver = Checkpointing(**(settings | shape | {"pacing": pacing}))
        facts = {"loop": msgspec.to_builtins(driver.config)}
        driver.loop.journal._started = Started(
            version="test",
            model="ghost",
            config=facts,
            num_pages=driver.config.num_pages,
            page_size=driver.config.page_size,
            num_slots=driver.config.max_running,
            seed=seed,
            time=0.0,
            wall=0.0,
        )
        return driver

    with monkeypatch.context() as patched:
        patched.setattr("tests.loops.test_replay.Driver", make)
        # Not through its cache: this run has checkpoints.
        records = DECODER.decode(test_replay._recorded.__wrapped__(seed, "overlap", True, "fcfs", True))
    first = next(record for record in records if isinstance(record, Checkpoint)).started
    return [first, *records[1:]]


def checkpoints(records: list[Record]) -> Iterator[tuple[int, Checkpoint]]:
    return ((at, record) for at, record in enumerate(records) if isinstance(record, Checkpoint))


@pytest.mark.parametrize("pacing", ["lockstep", "overlap"])
@pytest.mark.parametrize("shape", SHAPES)
def test_from_every_checkpoint_a_run_goes_on_as_recorded(
    monkeypatch: pytest.MonkeyPatch, shape: str, pacing: str
) -> None:
    """The checkpoints after it are compared as well: what was restored is again all of it."""
    for seed in range(2):
        records = recorded(monkeypatch, seed, pacing, SHAPES[shape])
        found = list(checkpoints(records))
        assert len(found) > 5
        for at, checkpoint in found[:: max(1, len(found) // 5)]:
            run = Replay.begin(checkpoint)
            run.loop.check_all()
            for record in records[at + 1 :]:
                run.feed(record)
            run.finish()


def test_a_forged_checkpoint_in_the_middle_of_a_run_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    records = recorded(monkeypatch, 0, "overlap", {})
    at, checkpoint = next(checkpoints(records))
    plain = msgspec.msgpack.decode(checkpoint.state or b"")
    plain["counters"]["received"] += 1
    records[at] = msgspec.structs.replace(checkpoint, state=msgspec.msgpack.encode(plain))
    with pytest.raises(Diverged):
        replay(records)


def test_a_checkpoint_whose_memory_is_not_that_of_its_digest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    records = recorded(monkeypatch, 0, "lockstep", {})
    _, checkpoint = list(checkpoints(records))[3]
    plain = msgspec.msgpack.decode(checkpoint.state or b"")
    plain["memory"]["promised"] = b"\1" + plain["memory"]["promised"][1:]
    forged = msgspec.structs.replace(checkpoint, state=msgspec.msgpack.encode(plain))
    with pytest.raises(MemoryViolation):
        Replay.begin(forged)
