"""Sessions in a trace: random turns are judged from every checkpoint as from the beginning, sound or forged."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.properties.sessions import SessionAtomicity
from pawl.lifecycle.records import DECODER, ENCODER, Checkpoint, Delivered, Record, Submitted
from pawl.loops.orders.requests import Abort
from pawl.loops.orders.sessions import BeginTurn, CloseSession, OpenSession
from pawl.loops.snapshot import checkpoint
from tests.loops.driver import Driver, first_record

SEEDS = range(12)


def run_of(seed: int) -> list[Record]:
    """Turns that go on from any other, replace it, keep some of it, end early, or must be refused; a checkpoint each
    time that no step is in flight."""
    source = random.Random(seed)
    driver = Driver(pacing=source.choice(("lockstep", "overlap")))
    driver.loop.journal._started = started = first_record(driver.config, seed)
    streaming, capacity = source.random() < 0.25, source.choice((0, 14, 30))
    driver.intake.deliver(OpenSession("s", capacity, 0.0, streaming), 0.0)
    names: list[str] = []
    for _ in range(30):
        request, rid = driver._next, source.choice(("again", f"t{len(names)}"))
        parent = source.choice([*names[-4:], None]) if names and not streaming else None
        own = tuple(source.randrange(5) for _ in range(source.randrange(1, 4)))
        most = source.choice((1, 2, 9))
        ways = {"replace": source.random() < 0.5, "drop_previous_output": source.random() < 0.2}
        ways["offset"] = source.choice((0, 0, 2, -1)) if parent is not None else 0
        fields: dict[str, Any] = {} if streaming and source.random() < 0.8 else ways
        turn = BeginTurn(request, rid, "s", own, most, parent=parent, **fields)
        driver.intake.deliver(turn, driver.now)
        driver.submit(list(own), most, rid=rid)
        names.append(rid)
        live = [number for number in driver.output_of if number not in driver.ending_of]
        if live and source.random() < 0.2:
            driver.intake.deliver(Abort((source.choice(live),)), driver.now)
        for _ in range(source.choice((0, 1, 1, 9))):
            driver.step()
            if not driver.loop.in_flight:
                checkpoint(driver.intake, driver.now)
    if source.random() < 0.5:
        driver.intake.deliver(CloseSession("s"), driver.now)
    driver.run()
    checkpoint(driver.intake, driver.now)
    return DECODER.decode(ENCODER.encode([started, *driver.records]))


def judged(records: Sequence[Record]) -> list[tuple[int, str]]:
    """What is wrong with which request."""
    monitor = Monitor([SessionAtomicity()])
    for record in records:
        monitor.observe(record)
    return [(found.request, found.explanation) for found in monitor.violations]


def forged(records: Sequence[Record], source: random.Random) -> tuple[list[Record], int]:
    """With one turn announced, or its prompt, other than it was; and where."""
    turns = [at for at, each in enumerate(records) if isinstance(each, Delivered) and each.kind == "begin_turn"]
    at = source.choice(turns[1:])
    record = records[at]
    assert isinstance(record, Delivered)
    names = [each.fields["rid"] for each in records[:at] if isinstance(each, Delivered) and "rid" in each.fields]
    changes = {
        "parent": source.choice(names),
        "replace": record.fields.get("replace") is not True,
        "drop_previous_output": record.fields.get("drop_previous_output") is not True,
        "offset": source.choice((1, 3, -2)),
        "rid": source.choice(names),
        "max_new_tokens": 90,
    }
    name = source.choice([*changes, "prompt"])
    changed = list(records)
    if name == "prompt":
        at = next(each for each in range(at, len(records)) if isinstance(records[each], Submitted))
        prompt = records[at]
        assert isinstance(prompt, Submitted)
        changed[at] = msgspec.structs.replace(prompt, tokens=bytes(prompt.tokens)[:-4] + b"\x63\0\0\0")
    else:
        changed[at] = msgspec.structs.replace(record, fields=record.fields | {name: changes[name]})
    return changed, at


@pytest.mark.parametrize("seed", SEEDS)
def test_a_session_is_judged_from_every_checkpoint_as_from_the_beginning(seed: int) -> None:
    records, source = run_of(seed), random.Random(seed)
    cuts = [at for at, record in enumerate(records) if isinstance(record, Checkpoint)]
    assert [judged(records[at:]) for at in (0, *cuts)] == [[]] * (len(cuts) + 1)
    for _ in range(4):
        changed, place = forged(records, source)
        found = judged(changed)
        for at in (at for at in cuts if at < place):
            assert judged(changed[at:]) == found, f"from the checkpoint at {at}, of {changed[place]}"


def test_these_turns_are_refused_replace_others_and_live_across_checkpoints_and_most_forgeries_show() -> None:
    refused = shown = carried = 0
    for seed in SEEDS:
        records, source = run_of(seed), random.Random(seed)
        refused += sum(getattr(record, "cause", None) == "invalid" for record in records)
        states = [record.state for record in records if isinstance(record, Checkpoint) and record.state is not None]
        sessions = [session for state in states for session in msgspec.msgpack.decode(state)["sessions"]]
        carried += sum(bool(replaces) for session in sessions for *_, replaces in session[7])
        shown += sum(bool(judged(forged(records, source)[0])) for _ in range(4))
    assert min(refused, carried) >= 3
    assert shown >= len(SEEDS)
