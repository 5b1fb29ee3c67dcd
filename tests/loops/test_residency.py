"""Memory that is released and resumed, given to a loop as a scheduler gives it: nobody is at work meanwhile, and
whatever the worker answers leaves a state from which it can be tried again."""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.weights import NAMES, GhostWeights
from pawl.lifecycle.machines.base import IllegalMove
from pawl.lifecycle.machines.memory import RESIDENCY, MemoryTag, Residency, ResidencyEvent
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import MemoryMoved
from pawl.lifecycle.states import Cause
from pawl.lifecycle.weight_source import FromBytes, FromDisk
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.memory import MoveEnded, ReleaseMemory, ResumeMemory
from pawl.loops.orders.requests import Abort, CheckDeadlines
from pawl.loops.orders.serving import Continue, Pause
from pawl.loops.orders.weights import PutWeights, UpdateWeights, WeightsStaged, WeightsSwapped
from pawl.loops.residency import HELD, LIVE, MOVING, READING, UPDATING, MemoryKeeper
from pawl.loops.snapshot import restore, snapshot_of
from tests.loops.driver import Driver

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]
KV, WEIGHTS, GRAPH = MemoryTag.KV_CACHE, MemoryTag.WEIGHTS, MemoryTag.CUDA_GRAPH


class Server(Driver):
    """A driver whose worker moves memory."""

    number = 100

    def ask(self, order: ReleaseMemory | ResumeMemory, *, fails: str = "", left: Collection[MemoryTag] = ()) -> str:
        """Give the order, have the worker do it, or fail with `left` released; what the asker was told."""
        self.number += 1
        self.intake.deliver(order, self.now, self.number)
        move = self.intake.memory.move
        if self.number not in self.outcome_of and move is not None:
            (self.ghost.release if move.event is ResidencyEvent.RELEASE else self.ghost.resume)(move.tags)
            released = tuple(left) if fails else tuple(self.ghost.released)
            self.intake.deliver(MoveEnded(move.ticket, released, fails), self.now)
        outcome = self.outcome_of[self.number]
        return f"{'ok' if outcome.ok else 'no'}: {outcome.message}"

    def release(self, *tags: MemoryTag) -> str:
        return self.ask(ReleaseMemory(tags, timeout_s=0))

    def resume(self, *tags: MemoryTag) -> str:
        return self.ask(ResumeMemory(tags))

    @property
    def released(self) -> set[MemoryTag]:
        return set(self.loop.released)


def served(server: Driver, count: int = 3) -> int:
    request = server.submit(PROMPT, count)
    server.run()
    assert server.output_of[request] == expected(PROMPT, count)
    return request


def test_a_part_that_is_released_is_released_once_and_resumed_once() -> None:
    server = Server()
    assert server.release(KV) == "ok: Memory occupation released."
    assert server.release(KV) == server.release(KV, WEIGHTS) == "no: kv_cache: already released"
    assert server.resume(WEIGHTS) == "no: weights: not currently released"
    assert server.resume(WEIGHTS, KV) == "no: weights: not currently released"
    assert server.released == {KV}
    assert server.resume(KV) == "ok: Memory occupation resumed."
    assert server.resume(KV) == "no: kv_cache: not currently released"
    assert server.released == set()


def test_who_names_nothing_means_all_that_can_be() -> None:
    server = Server()
    server.release(WEIGHTS)
    assert server.release().startswith("ok")
    assert server.released == set(MemoryTag)
    assert server.release() == "no: kv_cache, weights, cuda_graph: already released"
    server.resume(GRAPH)
    assert server.resume().startswith("ok")
    assert server.resume() == "no: kv_cache, weights, cuda_graph: not currently released"


@pytest.mark.parametrize("tag", MemoryTag)
def test_who_comes_meanwhile_waits_and_goes_on_when_all_is_resident(tag: MemoryTag) -> None:
    server = Server()
    served(server)
    server.release(tag, GRAPH)
    request = server.submit(PROMPT, 3)
    planned = server.loop.counters.steps
    assert not server.step()
    server.resume(GRAPH)
    if tag is not GRAPH:
        assert not server.step()
        assert (server.loop.counters.steps, server.output_of[request]) == (planned, [])
        server.resume(tag)
    server.run()
    assert server.output_of[request] == expected(PROMPT, 3)


def test_pages_come_back_empty_and_the_prefix_cache_with_them() -> None:
    server = Server()
    served(server)
    assert server.loop.memory.cache.statistics()["pages"] > 0
    server.release(KV)
    assert server.loop.memory.cache.statistics()["pages"] == 0
    server.resume(KV)
    assert server.ending_of[served(server)].info.num_cached == 0


def test_pages_stay_cached_while_only_the_weights_are_released() -> None:
    server = Server()
    served(server)
    server.release(WEIGHTS)
    server.resume(WEIGHTS)
    assert server.ending_of[served(server)].info.num_cached > 0


def test_who_is_at_work_is_in_the_way_until_a_pause_takes_its_pages() -> None:
    server = Server(pacing="overlap")
    request = server.submit(PROMPT, 9)
    server.step()
    assert server.release(KV) == f"no: {LIVE}"
    server.intake.deliver(Pause(), server.now)
    assert server.loop.in_flight
    assert server.release(WEIGHTS) == f"no: {LIVE}", "a step is computed with them"
    while server.step():
        pass
    assert server.release(KV) == f"no: {HELD}"
    assert server.release(WEIGHTS).startswith("ok"), "who keeps pages needs no weights while it is paused"
    server.intake.deliver(Pause(retract=True), server.now)
    assert server.release(KV).startswith("ok")
    server.intake.deliver(Continue(), server.now)
    assert not server.step(), "it is not paused any more, and is released"
    server.resume()
    server.run()
    assert server.output_of[request] == expected(PROMPT, 9)


def test_a_release_of_pages_waits_until_nobody_keeps_some_and_one_of_weights_does_not() -> None:
    server = Server()
    server.submit(PROMPT, 9)
    server.step()
    server.intake.deliver(Pause(), server.now)
    while server.step():
        pass
    server.intake.deliver(ReleaseMemory(), server.now, 7)
    assert (list(server.intake.waiting), server.outcome_of) == ([7], {})
    assert server.release(WEIGHTS).startswith("ok")
    server.intake.deliver(Pause(retract=True), server.now)
    server.intake.turn(server.now)
    assert server.released == set(MemoryTag)


def test_a_release_waits_for_the_step_behind_the_last_answer() -> None:
    server = Server(pacing="overlap")
    request = server.submit(PROMPT, 20, stop_token_ids=(expected(PROMPT, 3)[2],))
    while request not in server.ending_of:
        server.step()
    assert server.loop.in_flight, "a step was launched before it was known that this token is the last"
    server.intake.deliver(ReleaseMemory((KV,)), server.now, 7)
    assert (server.intake.memory.move, server.outcome_of) == (None, {})
    server.run()
    server.intake.turn(server.now)
    move = server.intake.memory.move
    assert move is not None
    assert move.asker == 7


def test_who_waits_meanwhile_can_be_aborted_and_its_time_can_be_over() -> None:
    server = Server()
    server.release()
    aborted, late = server.submit(PROMPT, 3), server.submit(PROMPT, 3, deadline=5.0)
    server.intake.deliver(Abort((aborted,)), server.now)
    server.now += 10.0
    server.intake.deliver(CheckDeadlines(), server.now)
    assert (server.cause(aborted), server.cause(late)) == (Cause.CLIENT, Cause.TIMEOUT)
    server.submit(PROMPT, 3)
    server.loop.stop(server.now)
    assert len(server.loop.table) == 0


def test_what_the_worker_cannot_resume_stays_released_and_can_be_tried_again() -> None:
    server = Server()
    server.release()
    assert server.ask(ResumeMemory(), fails="no memory", left=tuple(MemoryTag)) == "no: no memory"
    assert server.released == set(MemoryTag)
    server.ghost.release(tuple(MemoryTag))
    assert server.resume().startswith("ok")
    served(server)


def test_what_the_worker_cannot_release_is_resident() -> None:
    server = Server()
    assert server.ask(ReleaseMemory((WEIGHTS,)), fails="the disk is full", left=()) == "no: the disk is full"
    server.ghost.resume(tuple(MemoryTag))
    assert server.released == set()
    served(server)


def test_one_move_at_a_time_and_news_of_another_is_late() -> None:
    server = Server()
    server.intake.deliver(ReleaseMemory((KV,)), server.now, 7)
    for order in (ReleaseMemory((WEIGHTS,)), ResumeMemory((KV,))):
        assert server.ask(order) == f"no: {MOVING}"
    for late in (MoveEnded(2, ()), MoveEnded(0, ())):
        server.intake.deliver(late, server.now)
    assert (server.released, server.intake.owed) == ({KV}, {7})
    server.intake.deliver(MoveEnded(1, (KV,)), server.now)
    assert (server.outcome_of[7].ok, server.intake.owed) == (True, set())


def test_weights_that_an_update_brings_are_resident() -> None:
    server = Server()
    server.release()
    server.intake.deliver(UpdateWeights(model_path="ghost:b", weight_version="b"), server.now, 7)
    assert server.resume() == f"no: {UPDATING}"
    update = server.intake.weights.update
    assert update is not None
    server.intake.deliver(WeightsStaged(update.ticket, server.ghost.stage(update.ticket, FromDisk("ghost:b"))), 0.0)
    server.ghost.swap(update.ticket)
    server.intake.deliver(WeightsSwapped(update.ticket), server.now)
    assert server.outcome_of[7].ok
    assert server.released == {KV, GRAPH}
    assert server.resume(WEIGHTS) == "no: weights: not currently released"
    assert server.resume().startswith("ok")


def part(server: Server, *names: str, last: bool, number: int) -> int:
    """Some of the weights `ghost:b+c` have come and fit; the ticket of their update."""
    source = FromBytes(GhostWeights.named("ghost:b+c").file(*names))
    server.intake.deliver(PutWeights(source=source, last=last, weight_version="v"), server.now, number)
    update = server.intake.weights.update
    assert update is not None
    move = server.resume if server.released else server.release
    assert move() == f"no: {UPDATING}", "they are being laid out"
    fingerprint = server.ghost.stage(update.ticket, source, last=last)
    server.intake.deliver(WeightsStaged(update.ticket, fingerprint), server.now)
    return update.ticket


@pytest.mark.parametrize("released_first", [True, False])
def test_between_parts_of_an_update_memory_is_released_and_resumed_and_no_part_is_lost(released_first: bool) -> None:
    server = Server()
    if released_first:
        server.release()
    part(server, NAMES[0], last=False, number=7)
    if not released_first:
        assert server.release().startswith("ok")
    assert server.resume().startswith("ok")
    served(server)
    server.release()
    ticket = part(server, NAMES[1], last=True, number=8)
    assert server.resume() == f"no: {UPDATING}", "they are being exchanged"
    server.ghost.swap(ticket)
    server.intake.deliver(WeightsSwapped(ticket), server.now)
    server.resume()
    request = server.submit(PROMPT, 3)
    server.run()
    assert server.output_of[request] == expected(PROMPT, 3, GhostWeights.named("ghost:b+c").salt)


def test_a_flush_while_memory_is_released_loses_nobody() -> None:
    server = Server()
    server.release(WEIGHTS)
    request = server.submit(PROMPT, 3)
    server.intake.deliver(FlushCache(), server.now, 7)
    assert (server.outcome_of[7].ok, server.outcome_of[7].facts["released"]) == (True, ["weights"])
    server.resume()
    server.run()
    assert server.output_of[request] == expected(PROMPT, 3)


def test_a_checkpoint_carries_what_is_released_and_who_waits() -> None:
    server, other = Server(), Server()
    server.release(KV)
    server.intake.deliver(ResumeMemory((KV,)), server.now, 9)
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot_of(server.intake)))
    restore(other.intake, plain)
    assert (other.released, other.intake.memory.move) == ({KV}, server.intake.memory.move)
    other.intake.deliver(MoveEnded(2, ()), 0.0)
    assert (other.released, other.outcome_of[9].ok) == (set(), True)


def test_records_say_what_moved_and_no_property_minds() -> None:
    server = Server()
    server.release(KV)
    server.release()
    server.resume()
    moved = [record for record in server.records if isinstance(record, MemoryMoved)]
    assert [(record.event, record.tags) for record in moved] == [
        (ResidencyEvent.RELEASE, (KV,)),
        (ResidencyEvent.RELEASE, (WEIGHTS, GRAPH)),
        (ResidencyEvent.RESUME, (KV, WEIGHTS, GRAPH)),
    ]
    monitor = Monitor()
    assert [found for record in server.records for found in monitor.observe(record)] == []  # type: ignore[arg-type]


def test_the_table_knows_no_other_move() -> None:
    with pytest.raises(IllegalMove):
        RESIDENCY.next(Residency.RELEASED, ResidencyEvent.RELEASE)
    with pytest.raises(IllegalMove):
        RESIDENCY.next(Residency.RESIDENT, ResidencyEvent.REPLACE)


@pytest.mark.parametrize(("updating", "live", "held", "reading"), list(product((False, True), repeat=4)))
def test_each_part_is_kept_by_what_works_with_it_and_by_nothing_else(
    updating: bool, live: bool, held: bool, reading: bool
) -> None:
    loop: Any = SimpleNamespace(
        released=frozenset(),
        in_flight=(),
        still=False,
        idle=not live,
        queues=SimpleNamespace(owns_nothing=not held),
        companions=(SimpleNamespace(writes_weights=False), SimpleNamespace(writes_weights=reading)),
    )
    keeper = MemoryKeeper(loop, lambda: updating, lambda number, ok, message: None)
    for tags in (each for count in (1, 2, 3) for each in combinations(MemoryTag, count)):
        reasons = {
            UPDATING: updating and WEIGHTS in tags,
            LIVE: live,
            HELD: held and KV in tags,
            READING: reading and WEIGHTS in tags,
        }
        first = next((reason for reason, stands in reasons.items() if stands), None)
        assert keeper._refusal(ResidencyEvent.RELEASE, tags) == first, tags
