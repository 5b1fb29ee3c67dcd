"""Actors that roam are run by whoever has read a message for them: never by two, nobody waits for them, and no timer of
theirs is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pawl.actors.runtime.cell import Cell
from pawl.actors.runtime.drivers import ThreadDriver, visitor
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.runtime.receiver import Phase
from tests.actors.linked_systems import LinkedSystems, wait_for
from tests.actors.runtime_doing import GENEROUS_S, Doing, Number


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[LinkedSystems]:
    systems = LinkedSystems(tmp_path, 0)
    yield systems
    assert systems.stop(timeout_s=GENEROUS_S) == ()


def waits_for(event: threading.Event) -> Callable[[Doing, Number], None]:
    def handle(actor: Doing, message: Number) -> None:
        assert event.wait(GENEROUS_S)

    return handle


def test_who_roams_runs_where_the_message_was_read_and_others_in_their_own_thread(linked: LinkedSystems) -> None:
    names: list[str] = []
    done = threading.Semaphore(0)

    def handle(actor: Doing, message: Number) -> None:
        names.append(threading.current_thread().name)
        done.release()

    linked.spawn(Doing(handle), "roams")
    linked.spawn(Doing(handle), "stays")
    linked.start()
    for name in ("roams", "stays"):
        wait_for(lambda name=name: is_parked(linked, name))
        linked.send(name, Number(1))
        assert done.acquire(timeout=GENEROUS_S)
    assert names[0].startswith("links.")
    assert names[1] == "stays"


def is_parked(linked: LinkedSystems, name: str) -> bool:
    return linked.home(name).find(name).mailbox._parked  # type: ignore[union-attr]


def woken_by_a_visitor(system: LocalSystem, name: str) -> Any:
    """Who runs this actor: the one that a message, read by a visitor who leaves, has woken."""
    wait_for(lambda: system._cells[name].mailbox._parked)
    visitor.may_run = True
    system.send(name, Number(0))
    woken = visitor.leave()
    assert woken is not None
    return woken


def test_nobody_waits_for_handlers_that_take_their_time(linked: LinkedSystems) -> None:
    """However many actors of a process are at work, what others are sent is read."""
    enough, heard = threading.Event(), threading.Semaphore(0)
    # In turn: of nine, three live in each system, and every other one roams.
    for number in range(9):
        linked.spawn(Doing(waits_for(enough)), f"slow.{number}")
    for number in range(3):
        linked.spawn(Doing(lambda actor, message: heard.release()), f"quick.{number}")
    linked.start()
    for number in range(9):
        linked.send(f"slow.{number}", Number(1))
    for number in range(3):
        linked.send(f"quick.{number}", Number(1))
    for _ in range(3):
        assert heard.acquire(timeout=GENEROUS_S)
    enough.set()


def test_no_wake_is_lost_when_timers_and_messages_of_others_race(linked: LinkedSystems) -> None:
    done = threading.Event()
    fired = 0
    busy = threading.Lock()

    def handle(actor: Doing, message: Number) -> None:
        nonlocal fired
        assert busy.acquire(blocking=False), "two threads run it"
        if message.value >= 0:
            actor.context.after(0.00005 * (message.value % 3), Number(-1))
        else:
            fired += 1
        busy.release()
        if fired == 2000:
            done.set()

    linked.spawn(Doing(handle), "clock", capacity=2000)
    linked.start()
    for value in range(2000):
        assert linked.send("clock", Number(value))
    assert done.wait(GENEROUS_S)


def test_a_thread_whose_time_has_come_while_another_one_ran_its_actor_goes_on() -> None:
    """By the system's clock the timer is not due until later, so only its own thread can run it."""
    now, values = [0.0], []
    system = LocalSystem(clock=lambda: now[0])
    done = threading.Event()

    def handle(actor: Doing, message: Number) -> None:
        values.append(message.value)
        match message.value:
            case 0:
                actor.context.after(0.001, Number(2))
            case 1:
                wait_for(lambda: driver._overdue)
            case 2:
                done.set()

    actor = Doing(handle)
    actor.roams = True
    system.spawn(actor, "clock")
    cell, driver = system._cells["clock"], system._drivers["clock"]
    assert isinstance(cell, Cell)
    assert isinstance(driver, ThreadDriver)
    system.send("clock", Number(0))
    system.start()
    wait_for(lambda: visited(system, driver))
    assert values == [0, 1]
    now[0] = 1.0
    assert done.wait(GENEROUS_S)
    assert system.stop(timeout_s=GENEROUS_S) == ()


def test_a_thread_that_was_overtaken_once_sleeps_through_later_visits() -> None:
    now = [0.0]
    system = LocalSystem(clock=lambda: now[0])

    def handle(actor: Doing, message: Number) -> None:
        match message.value:
            case 0:
                actor.context.after(0.001, Number(2))
            case 1:
                wait_for(lambda: driver._overdue)
                now[0] = 1.0

    actor = Doing(handle)
    actor.roams = True
    system.spawn(actor, "clock")
    driver = system._drivers["clock"]
    assert isinstance(driver, ThreadDriver)
    system.send("clock", Number(0))
    system.start()
    wait_for(lambda: visited(system, driver))
    wait_for(lambda: driver._until is None and driver._cell.mailbox._parked)
    woken: list[bool] = []
    driver.go = lambda: woken.append(True)
    visitor.may_run = True
    system.send("clock", Number(3))
    visit = visitor.leave()
    assert visit is not None
    visit.visit()
    assert not woken
    driver.go = driver._gate.release
    assert system.stop(timeout_s=GENEROUS_S) == ()


def visited(system: LocalSystem, driver: ThreadDriver) -> bool:
    """Bring it a message, and run it, if it is parked now."""
    visitor.may_run = driver._until is not None and driver._cell.mailbox._parked
    if visitor.may_run:
        system.send("clock", Number(1))
    if (woken := visitor.leave()) is None:
        return False
    woken.visit()
    return True


def test_a_timer_that_is_set_on_a_visit_comes_though_nobody_else_does() -> None:
    system = LocalSystem()
    done = threading.Event()

    def handle(actor: Doing, message: Number) -> None:
        if message.value:
            done.set()
        else:
            actor.context.after(0.001, Number(1))

    actor = Doing(handle)
    actor.roams = True
    system.spawn(actor, "clock")
    system.start()
    woken_by_a_visitor(system, "clock").visit()
    assert done.wait(GENEROUS_S)
    assert system.stop(timeout_s=GENEROUS_S) == ()


@pytest.mark.parametrize("away", [True, False])
def test_who_has_more_to_bring_or_is_alone_runs_nobody(away: bool) -> None:
    system = LocalSystem()
    names: list[str] = []
    done = threading.Event()

    def handle(actor: Doing, message: Number) -> None:
        names.append(threading.current_thread().name)
        done.set()

    actor = Doing(handle)
    actor.roams = True
    system.spawn(actor, "actor")
    system.start()
    wait_for(lambda: system._cells["actor"].mailbox._parked)
    visitor.may_run = away
    system.send("actor", Number(1))
    visitor.stays()
    assert done.wait(GENEROUS_S)
    assert names == ["actor"]
    assert system.stop(timeout_s=GENEROUS_S) == ()


def test_an_actor_that_ends_on_a_visit_ends_its_thread() -> None:
    system = LocalSystem()
    actor = Doing(lambda actor, message: actor.context.send("nobody", message))
    actor.roams = True
    system.spawn(actor, "actor")
    system.start()
    cell, driver = system._cells["actor"], system._drivers["actor"]
    assert isinstance(driver, ThreadDriver)
    wait_for(lambda: cell.mailbox._parked)
    visitor.may_run = True
    cell.ask_to_stop("tired")
    woken = visitor.leave()
    assert woken is driver
    assert not cell.over.is_set()
    woken.visit()
    assert cell.phase is Phase.ENDED
    driver._thread.join(GENEROUS_S)
    assert not driver._thread.is_alive()
    assert system.stop(timeout_s=GENEROUS_S) == ()


class Broken(BaseException):
    """What no handler is meant to survive."""


def test_who_breaks_off_a_visit_hears_so_and_the_actor_has_ended() -> None:
    def handle(actor: Doing, message: Number) -> None:
        raise Broken

    system, actor = LocalSystem(), Doing(handle)
    actor.roams = True
    system.spawn(actor, "broken")
    system.start()
    woken = woken_by_a_visitor(system, "broken")
    cell, go, found = system._cells["broken"], woken.go, []
    assert isinstance(cell, Cell)

    def gone_on() -> None:
        found.append(cell.phase)
        go()

    woken.go = gone_on
    with pytest.raises(Broken):
        woken.visit()
    assert found == [Phase.ENDED], "its own thread finds it as it was"
    assert cell.over.wait(GENEROUS_S)
    assert system.stop(timeout_s=GENEROUS_S) == ()
