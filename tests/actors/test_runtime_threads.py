"""The local runtime under real concurrency: blocking calls, idle cost, stopping from anywhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pawl.actors.runtime.actor import Lane, Overflow
from pawl.actors.runtime.cell import Cell
from pawl.actors.runtime.drivers import ThreadDriver
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.runtime.mailbox import Edge, Mailbox
from pawl.actors.runtime.receiver import Phase
from tests.actors.runtime_doing import GENEROUS_S, Doing, Number, ignore


@pytest.fixture
def system() -> Iterator[LocalSystem]:
    local = LocalSystem()
    yield local
    assert local.stop(timeout_s=10.0) == ()


def test_messages_of_many_threads_all_arrive_in_the_order_of_each(system: LocalSystem) -> None:
    received: list[int] = []
    done = threading.Event()

    def handle(actor: Doing, message: Number) -> None:
        received.append(message.value)
        if len(received) == 20_000:
            done.set()

    system.spawn(Doing(handle), "sink", capacity=20_000)
    system.start()

    def send_all(first: int) -> None:
        for value in range(first, first + 5000):
            assert system.send("sink", Number(value))

    threads = [threading.Thread(target=send_all, args=(first,)) for first in range(0, 20_000, 5000)]
    for thread in threads:
        thread.start()
    assert done.wait(GENEROUS_S)
    for thread in threads:
        thread.join()
    for first in range(0, 20_000, 5000):
        assert [value for value in received if first <= value < first + 5000] == list(range(first, first + 5000))


def test_no_wake_is_lost_in_many_round_trips(system: LocalSystem) -> None:
    done = threading.Event()

    def hand_to(peer: str) -> Callable[[Doing, Number], None]:
        def handle(actor: Doing, message: Number) -> None:
            if message.value == 0:
                done.set()
            else:
                actor.context.send(peer, Number(message.value - 1))

        return handle

    system.spawn(Doing(hand_to("right")), "left")
    system.spawn(Doing(hand_to("left")), "right")
    system.start()
    system.send("left", Number(5000))
    assert done.wait(GENEROUS_S)


def test_no_wake_is_lost_when_timers_and_messages_race(system: LocalSystem) -> None:
    """Each message sets a timer that is due at once, so parking, timing out and waking overlap all the time."""
    done = threading.Event()
    fired = 0

    def handle(actor: Doing, message: Number) -> None:
        nonlocal fired
        if message.value >= 0:
            actor.context.after(0.00005 * (message.value % 3), Number(-1))
            return
        fired += 1
        if fired == 3000:
            done.set()

    system.spawn(Doing(handle), "clock", capacity=3000)
    system.start()
    for value in range(3000):
        assert system.send("clock", Number(value))
    assert done.wait(GENEROUS_S)


class Unlucky(Mailbox):
    """A message arrives at the worst moments: as the reader's wait times out, and right after it has parked."""

    left = 50
    source = Edge("source", Lane.DATA, None)

    def strike(self) -> None:
        if self.left > 0:
            self.left -= 1
            self.put(Number(0), self.source)

    def park(self) -> bool:
        parked = super().park()
        if parked and self.left % 2 == 0:
            self.strike()
        return parked

    def unpark(self) -> bool:
        if self.left % 2 == 1:
            self.strike()
        return super().unpark()


def test_a_message_that_arrives_as_the_wait_times_out_leaves_no_wake_behind(system: LocalSystem) -> None:
    done = threading.Event()
    num_timers = 0

    def handle(actor: Doing, message: Number) -> None:
        nonlocal num_timers
        if message.value == 0:
            actor.context.after(0.0005, Number(1))
            return
        num_timers += 1
        if num_timers == 51:
            done.set()

    cell = Cell(system, Doing(handle), "unlucky", Unlucky(1000, Overflow.REJECT), seed=0)
    cell.mailbox.put(Number(0), Edge("first", Lane.DATA, None))
    ThreadDriver(cell, "unlucky").start()
    try:
        assert done.wait(GENEROUS_S)
        assert cell.phase is Phase.RUNNING
    finally:
        cell.ask_to_stop("stopped")
        assert cell.over.wait(GENEROUS_S)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_actor_whose_thread_dies_between_two_messages_has_ended(system: LocalSystem) -> None:
    class Leaving(Mailbox):
        def park(self) -> bool:
            raise SystemExit

    cell = Cell(system, Doing(ignore), "gone", Leaving(10, Overflow.REJECT), seed=0)
    ThreadDriver(cell, "gone").start()
    assert cell.over.wait(GENEROUS_S)
    assert cell.phase is Phase.ENDED


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="the system has no clocks of threads")
def test_an_idle_system_uses_no_cpu(system: LocalSystem) -> None:
    fired, others = threading.Event(), set(threading.enumerate())

    def handle(actor: Doing, message: Number) -> None:
        if message.value == 0:
            actor.context.after(1.0, Number(1))
        else:
            fired.set()

    for number in range(8):
        system.spawn(Doing(ignore), f"idle {number}")
    system.spawn(Doing(handle), "clock")
    system.start()
    system.send("clock", Number(0))
    clocks = [time.pthread_getcpuclockid(thread.ident or 0) for thread in set(threading.enumerate()) - others]
    used_s = sum(map(time.clock_gettime, clocks))
    assert fired.wait(GENEROUS_S)
    # One busy thread would have used the whole second.
    assert len(clocks) >= 9
    assert sum(map(time.clock_gettime, clocks)) - used_s < 0.2


class Pipe:
    """A producer with 100 messages to pass on to a consumer with room for four, which does not go on before `gate`
    is set."""

    def __init__(self, system: LocalSystem) -> None:
        self.gate, self.all_seen = threading.Event(), threading.Event()
        self._full, self._asked = threading.Event(), threading.Event()
        self.sent: list[int] = []
        self.seen: list[int] = []
        self.settled: list[int] = []
        """How many the producer had passed on, each time that it settled."""
        self._system = system
        producer = Doing(self.produce, lambda: self.settled.append(len(self.sent)))
        system.spawn(Doing(self.consume), "consumer", capacity=4, overflow=Overflow.HOLD)
        system.spawn(producer, "producer")
        for value in range(100):
            system.send("producer", Number(value))

    def consume(self, actor: Doing, message: Number) -> None:
        assert self.gate.wait(GENEROUS_S)
        self.seen.append(message.value)
        if len(self.seen) == 100:
            self.all_seen.set()

    def produce(self, actor: Doing, message: Number) -> None:
        if message.value < 0:
            self._asked.set()
            return
        assert actor.context.send("consumer", message)
        self.sent.append(message.value)
        if len(self.sent) == 5:
            self._full.set()

    def start(self) -> None:
        """Let both run until the consumer's mailbox is full: then the producer takes CONTROL, and no more DATA."""
        self._system.start()
        assert self._full.wait(GENEROUS_S)
        self._system.send("producer", Number(-1), Lane.CONTROL)
        assert self._asked.wait(GENEROUS_S)


def test_a_held_producer_rests_until_the_consumer_goes_on(system: LocalSystem) -> None:
    pipe = Pipe(system)
    pipe.start()
    # One in the consumer's hands, four in its mailbox, one beyond.
    assert len(pipe.sent) <= 6
    pipe.gate.set()
    assert pipe.all_seen.wait(GENEROUS_S)
    assert pipe.seen == list(range(100))


def test_a_held_producer_does_not_settle(system: LocalSystem) -> None:
    pipe = Pipe(system)
    pipe.start()
    pipe.gate.set()
    assert pipe.all_seen.wait(GENEROUS_S)
    assert system.stop() == ()
    assert set(pipe.settled) == {100}


def test_a_held_producer_passes_everything_on_before_it_stops(system: LocalSystem) -> None:
    pipe = Pipe(system)
    pipe.start()
    system.begin_stop(["producer", "consumer"], timeout_s=GENEROUS_S)
    pipe.gate.set()
    assert system.stop() == ()
    assert pipe.seen == list(range(100))


def test_a_held_actor_still_stops(system: LocalSystem) -> None:
    """Its receiver goes first and lets it go; what it then sends finds nobody."""
    system.spawn(Doing(ignore), "consumer", capacity=1, overflow=Overflow.HOLD)
    system.spawn(Doing(lambda actor, message: actor.context.send("consumer", message)), "producer")
    system.start()
    for value in range(50):
        system.send("producer", Number(value))
    assert system.stop(["consumer", "producer"], timeout_s=GENEROUS_S) == ()


def test_a_stop_that_blocks_is_refused_in_a_handler(system: LocalSystem) -> None:
    refused: list[str] = []
    done = threading.Event()

    def stop(actor: Doing, message: Number) -> None:
        try:
            system.stop()
        except RuntimeError as error:
            refused.append(str(error))
        done.set()

    system.spawn(Doing(stop), "actor")
    system.start()
    system.send("actor", Number(1))
    assert done.wait(GENEROUS_S)
    assert len(refused) == 1


def test_an_actor_may_begin_the_stop_that_ends_it(system: LocalSystem) -> None:
    actor = Doing(lambda actor, message: system.begin_stop())
    system.spawn(actor, "actor")
    system.start()
    system.send("actor", Number(1))
    assert system.wait(GENEROUS_S)
    assert actor.was_stopped.is_set()


def test_the_failure_callback_may_begin_the_stop() -> None:
    def fail(actor: Doing, message: Number) -> None:
        raise ValueError

    running = LocalSystem(on_failure=lambda name, error: running.begin_stop())
    other = Doing(ignore)
    running.spawn(Doing(fail), "weak")
    running.spawn(other, "other")
    running.start()
    running.send("weak", Number(1))
    assert running.wait(GENEROUS_S)
    assert other.was_stopped.is_set()


def test_a_stuck_actor_is_named_and_does_not_hold_up_the_stop() -> None:
    gate, inside = threading.Event(), threading.Event()

    def get_stuck(actor: Doing, message: Number) -> None:
        inside.set()
        gate.wait(GENEROUS_S)

    system = LocalSystem()
    stuck, other = Doing(get_stuck), Doing(ignore)
    system.spawn(stuck, "stuck")
    system.spawn(other, "other")
    system.start()
    for value in range(3):
        system.send("stuck", Number(value))
    try:
        assert inside.wait(GENEROUS_S)
        assert system.stop(["stuck", "other"], timeout_s=0.05) == ("stuck",)
        assert other.was_stopped.is_set()
    finally:
        gate.set()
    # Once it comes back it is cut off: told that it ends, without the messages that waited.
    assert stuck.was_stopped.wait(GENEROUS_S)


def test_an_actor_that_feeds_itself_for_ever_is_cut_off_in_time() -> None:
    system = LocalSystem()
    actor = Doing(lambda actor, message: actor.context.send("actor", message))
    system.spawn(actor, "actor")
    system.start()
    system.send("actor", Number(1))
    assert system.stop(timeout_s=0.1) == ()
    assert actor.was_stopped.is_set()


def test_only_its_own_thread_sets_an_actors_timers(system: LocalSystem) -> None:
    actor = Doing(ignore)
    system.spawn(actor, "actor")
    system.start()
    with pytest.raises(RuntimeError, match="own thread"):
        actor.context.after(1.0, Number(1))


def test_an_actors_thread_bears_its_name(system: LocalSystem) -> None:
    names: list[str] = []
    done = threading.Event()

    def handle(actor: Doing, message: Number) -> None:
        names.append(threading.current_thread().name)
        done.set()

    system.spawn(Doing(handle), "tokenizer")
    system.start()
    system.send("tokenizer", Number(1))
    assert done.wait(GENEROUS_S)
    assert names == ["tokenizer"]


def test_a_call_to_exit_in_a_handler_is_a_failure_like_any_other() -> None:
    def leave(actor: Doing, message: Number) -> None:
        raise SystemExit(3)

    failures: list[str] = []
    system = LocalSystem(on_failure=lambda name, error: failures.append(repr(error)))
    system.spawn(Doing(leave), "weak")
    system.send("weak", Number(1))
    system.start()
    system.stop()
    assert failures == ["SystemExit(3)"]


def test_who_watches_an_actor_whose_driver_is_gone_hears_why(
    system: LocalSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[str, str]] = []
    monkeypatch.setattr(system, "ended", lambda cell, reason, error: heard.append((reason, str(error))))
    cell = Cell(system, Doing(ignore), "alone", Mailbox(1, Overflow.REJECT), seed=0)
    cell.abandon("its thread died")
    cell.abandon("once more")
    assert heard == [("its thread died", "alone: its thread died")]


def test_who_is_retired_and_does_not_end_in_time_is_cut_off_and_the_rest_goes_on(system: LocalSystem) -> None:
    begun, gate, heard = threading.Event(), threading.Event(), list[int]()

    def handle(actor: Doing, message: Number) -> None:
        begun.set()
        assert gate.wait(GENEROUS_S)
        heard.append(message.value)

    system.spawn(Doing(handle), "busy")
    system.spawn(Doing(ignore), "idle")
    system.start()
    for value in (1, 2):
        system.send("busy", Number(value))
    assert begun.wait(GENEROUS_S)
    system.retire(("nobody", "idle", "busy"), timeout_s=0.0)
    gate.set()
    for name in ("idle", "busy"):
        cell = system._cells[name]
        assert isinstance(cell, Cell)
        assert cell.over.wait(GENEROUS_S)
    assert heard == [1]
    assert [letter.message for letter in system.dead_letters.recent()] == [Number(2)]


def test_no_thread_of_an_actor_keeps_a_process_that_wants_to_end(system: LocalSystem) -> None:
    """But the one that stops the others: the last answers of requests are told."""
    before, begun, kept = set(threading.enumerate()), threading.Event(), threading.Event()

    def keep(actor: Doing, message: Number) -> None:
        begun.set()
        kept.wait(GENEROUS_S)

    system.spawn(Doing(keep), "a")
    system.spawn(Doing(ignore), "b")
    system.start()
    system.send("a", Number(1))
    assert begun.wait(GENEROUS_S)
    assert {thread.daemon for thread in {*threading.enumerate()} - before} == {True}
    system.begin_stop()
    daemons = {thread.name: thread.daemon for thread in {*threading.enumerate()} - before}
    kept.set()
    assert daemons["stop"] is False
    assert system.wait(GENEROUS_S)
