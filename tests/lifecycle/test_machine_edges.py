"""Edges of the table that are not reserved are fired by the loop, and no reserved one is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pawl.features.request import GRAMMARS
from pawl.lifecycle.machine import TABLE, WAITING, Edge, UInt8s
from pawl.lifecycle.requests import Int32s, RequestTable
from pawl.lifecycle.states import Cause, Event, State
from pawl.loops.batch import BatchBuilder
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.orders.adapters import AdapterLoaded, LoadAdapter
from pawl.loops.orders.grammars import GrammarFailed, GrammarReady
from pawl.loops.planner import Planner
from pawl.loops.remote_prefill import RemotePrefill
from pawl.loops.select import Role
from pawl.loops.tiers import PageFetch, RemoteConfig, TierConfig
from pawl.memory.prefix.namespace import namespace_of
from pawl.memory.tiers.keys import page_keys, root_key
from pawl.memory.violation import MemoryViolation
from tests.loops.driver import Driver

EDGE_OF = {(edge.source, edge.event, cause): edge for edge in TABLE for cause in edge.causes}


class Fired:
    """The edges that tables of requests have fired, in every verb that changes a state."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.edges: set[Edge] = set()
        move, move_rows, undo = RequestTable.move, RequestTable.move_rows, RequestTable.undo

        def moved(table: RequestTable, row: int, event: Event, cause: Cause = Cause.NONE) -> State:
            self._fire(int(table.state[row]), event, cause)
            return move(table, row, event, cause)

        def moved_rows(table: RequestTable, rows: Int32s, events: UInt8s) -> None:
            for state, event in zip(table.state[rows].tolist(), events.tolist(), strict=True):
                self._fire(state, Event(event), Cause.NONE)
            move_rows(table, rows, events)

        def undone(table: RequestTable, row: int, state: State) -> None:
            self._fire(int(table.state[row]), Event.RESTORE, Cause.STEP_LOST)
            undo(table, row, state)

        patch.setattr(RequestTable, "move", moved)
        patch.setattr(RequestTable, "move_rows", moved_rows)
        patch.setattr(RequestTable, "undo", undone)

    def _fire(self, state: int, event: Event, cause: Cause) -> None:
        self.edges.add(EDGE_OF[State(state), event, cause])


class ForgetfulPlanner:
    """A planner on a machine whose memory is short now and then."""

    def __init__(self, planner: Planner, chance: random.Random) -> None:
        self.name, self.lookahead, self.max_step_s = planner.name, planner.lookahead, planner.max_step_s
        self._planner = planner
        self._chance = chance

    def plan(self, builder: BatchBuilder) -> None:
        self._planner.plan(builder)
        if not builder.empty and self._chance.random() < 0.03:
            raise MemoryViolation("no room for a plan")


class AnyDriver(Driver):
    """Does at random what clients, workers, lower tiers and the grammar actor may do."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        role = self.chance.choice([*Role, Role.DECODE])
        super().__init__(
            num_pages=20,
            max_context=60,
            max_running=4,
            lookahead=self.chance.choice([1, 4]),
            pacing=self.chance.choice(["overlap", "overlap", "lockstep"]),
            tiers=TierConfig(layout="ghost", lease_s=0.1),
            max_loras=1,
            max_loaded_loras=2,
            role=role,
            remote=RemoteConfig(max_pages=self.chance.choice([4, 6])) if role is Role.DECODE else None,
        )
        self.loop.planner = ForgetfulPlanner(self.loop.planner, self.chance)
        self.tiers = self.loop.companion(LowerTiers)
        self.remote = self.loop.companion(RemotePrefill) if role is Role.DECODE else None
        self.fetches: list[PageFetch] = []
        self.fences: list[int] = []
        self.compiling: list[int] = []
        for name in ("a", "b"):
            self.intake.deliver(LoadAdapter(name=name, path=f"ghost:{name}"), self.now)
            self.intake.turn(self.now)
            self._read()

    def violated(self, violation: MemoryViolation) -> None:
        assert str(violation).startswith("no room for a plan")

    def fetch(self, order: PageFetch) -> None:
        self.fetches.append(order)

    def fence(self, ticket: int) -> None:
        self.fences.append(ticket)

    def run_at_random(self, num_events: int) -> None:
        """Ends at rest."""
        for _ in range(num_events):
            self._act()
            if self.chance.random() < 0.5:
                self.loop.turn(self.now)  # a message came, and no result
                self._act()
            self._answer()
            self.step()
        while self.loop.table.row_of:
            self._answer()
            self.step()

    def _act(self) -> None:
        chance, requests = self.chance, self.loop.requests
        live = [*self.loop.table.row_of]
        if self.remote is not None and chance.random() < 0.2:
            told = chance.choice([self.remote.prefiller_up, self.remote.prefiller_up, self.remote.prefiller_down])
            told(chance.randrange(2), self.now)
        match chance.randrange(12):
            case 0 | 1 | 2 | 3:
                prompt = [chance.randrange(2) for _ in range(chance.randrange(1, 30))]
                keys = page_keys(root_key("ghost", ""), np.array(prompt, np.int32), 4)
                if chance.random() < 0.3:
                    self.tiers.kept(keys, self.now)
                deadline, grammar = self.now + chance.choice([3, 1000]), chance.choice([None, None, GRAMMARS[0]])
                wanted = chance.choice([0, 1, 20, 100])
                fields: dict[str, Any] = {"grammar": grammar, "embed": not wanted and grammar is None}
                assert self.intake.adapters is not None
                part = self.intake.adapters.part(chance.choice([0, 0, *self.adapters.values()]))
                if wanted > 1 and chance.random() < 0.5:
                    fields["output"] = [97]
                request = self.submit(prompt, wanted, deadline=deadline, namespace=namespace_of(adapter=part), **fields)
                if grammar is not None:
                    self.compiling.append(request)
            case 4 if live:
                requests.abort(self._one_of(live), Cause.CLIENT, self.now)
            case 5 if said := [request for request in live if self.output_of[request]]:
                table = self.loop.table
                waiting = [request for request in said if table.state[table.row_of[request]] in WAITING]
                requests.finish(self._one_of(waiting or said), 1, self.now)
            case 6:
                requests.expire(self.now)
            case 7 if chance.random() < 0.3:
                self.ghost.fail_at = {self.loop.counters.steps + 1}

    def _one_of(self, requests: list[int]) -> int:
        """Any; half of the time one that waits for room below the device, of which there are few."""
        table = self.loop.table
        few = [each for each in requests if table.state[table.row_of[each]] == State.QUEUED_RESERVING]
        return self.chance.choice(few if few and self.chance.random() < 0.5 else requests)

    def _read(self) -> None:
        for ticket, slot, source in self.readings:
            self.intake.deliver(AdapterLoaded(ticket, self.ghost.load_adapter(slot, source)), self.now)
        self.readings.clear()

    def _answer(self) -> None:
        """Lower tiers have nothing after all, or are late. Adapters are read. Grammars are compiled, or bad."""
        if self.chance.random() < 0.5:
            self._read()
        for ticket in self.fences:
            self.tiers.fetching.fenced(ticket, self.now)
        self.fences.clear()
        while self.compiling and self.chance.random() < 0.5:
            request, fails = self.compiling.pop(0), self.chance.random() < 0.1
            answer = GrammarFailed(request, "no grammar") if fails else GrammarReady(request)
            self.intake.deliver(answer, self.now)
        while self.remote is not None and self.prefills and self.chance.random() < 0.2:
            (prefill, *self.prefills) = self.prefills
            if self.chance.random() < 0.5:
                self.remote.overdue(prefill.ticket, self.now)
            else:
                self.remote.received(prefill.ticket, 0, 0, self.now)
        while self.fetches and self.chance.random() < 0.5:
            order = self.fetches.pop(0)
            if self.chance.random() < 0.5:
                self.tiers.fetching.expired(order.ticket, self.now)
            else:
                self.tiers.fetching.filled(order.ticket, 0, self.now)


@pytest.fixture
def fired() -> Iterator[Fired]:
    with pytest.MonkeyPatch.context() as patch:
        yield Fired(patch)


def test_every_edge_that_is_not_reserved_is_fired_and_no_other(fired: Fired) -> None:
    wanted = {edge for edge in TABLE if not edge.reserved}
    for seed in range(400):
        AnyDriver(seed).run_at_random(40)
        if fired.edges >= wanted:
            break
    assert [edge for edge in TABLE if edge in fired.edges ^ wanted] == []
