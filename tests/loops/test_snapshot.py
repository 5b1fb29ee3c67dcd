"""A run can be gone on with from any of its checkpoints: the same decisions, the same digests, to the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

import msgspec
import pytest

from pawl.lifecycle.properties.base import Property, Violation
from pawl.lifecycle.properties.monitor import PROPERTIES, Monitor
from pawl.lifecycle.records import DECODER, Checkpoint, Record
from pawl.lifecycle.step_times import StepTimes
from pawl.loops import snapshot
from pawl.loops.decision_log import OneDecisionLog
from pawl.loops.pacing import PACINGS
from pawl.loops.replay import Diverged, Impossible, Replay, replay
from pawl.loops.speculation import SpeculationConfig
from pawl.memory.violation import MemoryViolation
from tests.loops import test_replay
from tests.loops.driver import Driver, first_record
from tests.loops.test_replay_corruptions import FORGERIES, NAMED_AS_MISSING

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
    "bounded steps": {"max_step_s": 1.5},
    "drafts": {"speculation": SpeculationConfig(num_speculative_tokens=3, prompt_lookup_min=1, prompt_lookup_max=2)},
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


@cache
def recorded(seed: int, pacing: str, shape: str, policy: str = "fcfs") -> tuple[Record, ...]:
    """A run with checkpoints, as a reader gets it."""
    fields = {"policy": policy} | SHAPES[shape]

    def make(**settings: Any) -> Driver:
        driver = Checkpointing(**(settings | fields | {"pacing": pacing}))
        driver.token_s = 0.125 if "max_step_s" in fields else 0.0
        driver.loop.journal._started = first_record(driver.config, seed)
        return driver

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tests.loops.test_replay.Driver", make)
        # Not through its cache: this run has checkpoints.
        records = DECODER.decode(test_replay._recorded.__wrapped__(seed, "overlap", True, "fcfs", True))
    first = next(record for record in records if isinstance(record, Checkpoint)).started
    return (first, *records[1:])


def judged(records: Sequence[Record], properties: list[Property] | None = None) -> list[Violation]:
    monitor = Monitor([*(make() for make in PROPERTIES), OneDecisionLog()] if properties is None else properties)
    for record in records:
        monitor.observe(record)
    monitor.finish()
    return monitor.violations


def checkpoints(records: Sequence[Record]) -> Iterator[tuple[int, Checkpoint]]:
    return ((at, record) for at, record in enumerate(records) if isinstance(record, Checkpoint))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("pacing", PACINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_from_every_checkpoint_a_run_goes_on_as_recorded(shape: str, pacing: str, seed: int) -> None:
    """The checkpoints after it are compared as well: what was restored is again all of it. And no property takes what
    it begins with for anything but what it is."""
    records = recorded(seed, pacing, shape)
    found = list(checkpoints(records))
    assert len(found) > 5
    for at, checkpoint in found[:: max(1, len(found) // 5)]:
        Replay.begin(checkpoint).loop.check_all()
        assert judged(records[at:]) == []


@pytest.mark.parametrize(
    ("seed", "policy"),
    [
        (0, "fcfs"),
        (1, "priority"),
        *(pytest.param(seed, ("fcfs", "priority")[seed % 2], marks=pytest.mark.slow) for seed in range(2, 6)),
    ],
)
@pytest.mark.parametrize("pacing", PACINGS)
def test_every_property_of_records_can_begin_at_every_checkpoint(pacing: str, seed: int, policy: str) -> None:
    records = recorded(seed, pacing, "radix, lru", policy)
    for at, _ in checkpoints(records):
        assert judged(records[at:], [make() for make in PROPERTIES]) == [], f"from record {at}"


@pytest.mark.parametrize("kind", sorted(FORGERIES.keys() - {*NAMED_AS_MISSING, "another pool"}))
def test_what_is_forged_after_a_checkpoint_shows_from_there(kind: str) -> None:
    num_forged = 0
    for seed in range(3):
        records = recorded(seed, "overlap", "radix, lru")
        at, _ = next(checkpoints(records))
        first, *rest = records[at:]
        assert isinstance(first, Checkpoint)
        if kind == "another priority of the scheduler":
            (started,) = FORGERIES[kind]([first.started])
            forged = [msgspec.structs.replace(first, started=started), *rest]
        else:
            forged = [first, *FORGERIES[kind](rest)]
        if any(a is not b for a, b in zip_longest(forged, records[at:])):
            num_forged += 1
            assert judged(forged), f"seed {seed}"
    assert num_forged, "what would be forged is before the checkpoint"


MAY_NOT_MATTER = {
    *("memory.cache.trees.#.#.#.#", "table.columns.num_computed", "table.columns.order", "table.columns.priority"),
    *("table.columns.deadline", "table.tokens.#", "waiting", "orders", "ended_early.#.#", "memory.windows.full_page"),
    *(
        "behind",
        "limits.ready_at",
        *(f"limits.times.{name}" for name in StepTimes.__struct_fields__),
        "memory.windows.fence",
        "memory.windows.stamp",
        "memory.windows.groups",
        "memory.windows.groups.#.#",
    ),
}
"""What may change without any consequence in what follows: a rank between two that are never compared, say."""


def leaves(plain: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be changed; of long lists, in the first entries."""
    if isinstance(plain, dict):
        for name, value in plain.items():
            yield from leaves(value, (*path, name))
    elif isinstance(plain, list) and path[-1:] != ("free",):
        yield path
        for index, value in enumerate(plain[:3]):
            yield from leaves(value, (*path, index))
    else:
        yield path


def at(plain: Any, path: Sequence[Any]) -> Any:
    """What stands there."""
    for step in path:
        plain = plain[step]
    return plain


def with_another(state: bytes, path: tuple[Any, ...]) -> bytes:
    """The state, with something else there."""
    plain = msgspec.msgpack.decode(state)
    *above, last = path
    holder = plain
    for step in above:
        holder = holder[step]
    match holder[last]:
        case bool(value):
            holder[last] = not value
        case int(value) | float(value):
            holder[last] = value + 1
        case str(value):
            holder[last] = value + "x"
        case bytes(value):
            holder[last] = bytes(each ^ 1 for each in value[:1]) + value[1:]
        case list(value):
            holder[last] = value[::-1]
    return msgspec.msgpack.encode(plain)


@pytest.mark.parametrize(
    "shape",
    ["two pools", "random order", *(pytest.param(each, marks=pytest.mark.slow) for each in ("radix, lru", "lfu"))],
)
def test_a_checkpoint_that_was_changed_contradicts_itself_or_what_follows(shape: str) -> None:
    records = recorded(0, "overlap", shape)
    for at, checkpoint in list(checkpoints(records))[1::6]:
        state = checkpoint.state or b""
        for path in leaves(msgspec.msgpack.decode(state)):
            changed = with_another(state, path)
            name = ".".join("#" if isinstance(step, int) else step for step in path)
            if changed != state and name not in MAY_NOT_MATTER:
                forged = msgspec.structs.replace(checkpoint, state=changed)
                assert judged([forged, *records[at + 1 :]]), name


def test_a_forged_checkpoint_in_the_middle_of_a_run_differs() -> None:
    records = list(recorded(0, "overlap", "radix, lru"))
    at, checkpoint = next(checkpoints(records))
    plain = msgspec.msgpack.decode(checkpoint.state or b"")
    plain["counters"]["received"] += 1
    records[at] = msgspec.structs.replace(checkpoint, state=msgspec.msgpack.encode(plain))
    with pytest.raises(Diverged):
        replay(records)


def test_a_checkpoint_whose_memory_is_not_that_of_its_digest_is_refused() -> None:
    records = recorded(0, "lockstep", "radix, lru")
    _, checkpoint = list(checkpoints(records))[3]
    plain = msgspec.msgpack.decode(checkpoint.state or b"")
    plain["memory"]["promised"] = b"\1" + plain["memory"]["promised"][1:]
    forged = msgspec.structs.replace(checkpoint, state=msgspec.msgpack.encode(plain))
    with pytest.raises(MemoryViolation):
        Replay.begin(forged)


def test_a_checkpoint_from_which_nothing_can_be_made_is_said_to_be_that() -> None:
    _, checkpoint = next(checkpoints(recorded(0, "lockstep", "radix, lru")))
    plain = msgspec.msgpack.decode(checkpoint.state or b"")
    del plain["counters"]
    for state in (msgspec.msgpack.encode(plain), b"\xc1"):
        with pytest.raises(Impossible):
            Replay.begin(msgspec.structs.replace(checkpoint, state=state))


@pytest.mark.parametrize("shape", ["radix, lru", "drafts"])
def test_a_run_begins_at_the_record_of_its_checkpoint_and_at_no_other(shape: str) -> None:
    """What a loop would not have written shows before anything follows: whatever it holds more, and wherever."""
    _, checkpoint = list(checkpoints(recorded(0, "overlap", shape)))[2]
    begun = Replay.begin(checkpoint)
    assert (begun.number, begun.loop.journal.checkpoint_due) == (1, False)
    state = msgspec.msgpack.decode(checkpoint.state or b"")
    places = [(), *((name,) for name, part in state.items() if isinstance(part, dict))]
    assert len(places) > 3
    for place in places:
        forged = msgspec.msgpack.decode(checkpoint.state or b"")
        part = forged[place[0]] if place else forged
        part["more"] = 1
        with pytest.raises((Diverged, Impossible)):
            Replay.begin(msgspec.structs.replace(checkpoint, state=msgspec.msgpack.encode(forged)))


SET = ("limits.now.", "memory.slots.", "policy.")
"""Settings, slots that are free, and a seed: numbers that a loop begins with."""


@pytest.mark.parametrize("shape", SHAPES)
def test_a_loop_begins_with_nothing(shape: str) -> None:
    """Every number of which a checkpoint says how far it is is 0 before anything was done, but for the first step's."""
    driver = Driver(**SHAPES[shape])
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot.snapshot_of(driver.intake)))
    begun = {".".join(map(str, path)): at(state, path) for path in leaves(state)}
    numbers = {name: value for name, value in begun.items() if isinstance(value, int | float)}
    assert len(numbers) > 40
    counted = {name: value for name, value in numbers.items() if value and not name.startswith(SET)}
    assert counted == {"memory.epoch": 1, "limits.times.mixed": StepTimes().mixed}
