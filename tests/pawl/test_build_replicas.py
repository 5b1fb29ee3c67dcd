"""How a replica is started again: the router hears of it before it hears of its loss, and of what could not be."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.actors.messages.replicas import ReplicaFailed, ReplicaUp
from pawl.actors.names import ROUTER, Names, names_of
from pawl.actors.runtime.actor import Actor, Down
from pawl.actors.runtime.local import LocalSystem
from pawl.build import replicas as building
from pawl.build.replicas import ENOUGH, Replicas
from pawl.build.wiring import ActorSpec
from pawl.config import ServerConfig

GENEROUS_S = 60.0


class Listens(Actor):
    """Stands in the router's place."""

    accepts: Any = ReplicaUp | ReplicaFailed | Down

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def receive(self, message: Any) -> None:
        self.heard.append(message)


class FailsAtOnce(Actor):
    accepts = Down

    def started(self) -> None:
        raise RuntimeError("it cannot begin")


class Part:
    """A replica with one actor, which fails as it begins."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.num_closed = 0

    def close(self) -> None:
        self.num_closed += 1


class Failing(Replicas[Any]):
    """Replicas of which each fails as it begins, or is never met."""

    def __init__(self, *, is_met: bool) -> None:
        super().__init__(ServerConfig(model="ghost", dp=2), [Part(names_of(0)), Part(names_of(1))], lambda *_: None)
        self.system = LocalSystem()
        self.router = Listens()
        self.system.spawn(self.router, ROUTER)
        self.system.spawn(Listens(), "gateway")
        self.system.start()
        self.made: list[Part] = []
        self._is_met = is_met

    def heard(self) -> list[Any]:
        """What the router was told, after one replica was lost."""
        self._replace(names_of(0), 0.0)
        assert self.system.stop(timeout_s=GENEROUS_S) == ()
        return self.router.heard

    def actors(self, gateway: Any) -> tuple[ActorSpec, ...]:
        return ()

    def join(self) -> None: ...

    def _retire(self, lost: Names) -> None: ...

    def _end(self, names: Names) -> None: ...

    def _load(self, share: ServerConfig, names: Names) -> Part:
        if len(self.made) == 9:
            pytest.fail("starts are not bounded")
        self.made.append(Part(names))
        return self.made[-1]

    def _begin(self, replica: Part) -> None:
        self.system.spawn(FailsAtOnce(), replica.names.scheduler)
        found = self.system.find(replica.names.scheduler)
        assert found is not None
        assert found.over.wait(GENEROUS_S)

    def _meet(self, replica: Part) -> None:
        if not self._is_met:
            raise TimeoutError("it was never met")


def test_the_router_knows_of_a_replica_before_it_hears_of_its_loss() -> None:
    up, down = Failing(is_met=True).heard()
    assert (up, down.name) == (ReplicaUp(names_of(2)), "scheduler.2")


def test_a_start_that_fails_is_tried_again_until_there_were_enough_and_then_the_router_hears_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(building, "MAX_RESTARTS", 2)
    monkeypatch.setattr(building, "BACKOFF_S", 0.0)
    replicas = Failing(is_met=False)
    assert replicas.heard() == [ReplicaFailed(f"TimeoutError: it was never met; {ENOUGH}")]
    assert [part.names.replica for part in replicas.made] == [2, 3, 4]
    assert [part.num_closed for part in replicas.made] == [1, 1, 1]
    assert [replica.names.replica for replica in replicas.live()] == [1]
    assert list(replicas._places) == [1]  # the books of a server whose replicas come and go do not grow


def test_only_who_is_behind_the_router_may_fail_and_leave_the_engine_as_it_is() -> None:
    ended: list[str] = []
    replicas = Failing(is_met=True)
    replicas._on_end = lambda name, error: ended.append(name)
    for name in ("scheduler.7", "desk.7", "router", "gateway", "wire.7"):
        replicas.failed(name, RuntimeError())
    assert ended == ["router", "gateway", "wire.7"]
    assert replicas.system.stop(timeout_s=GENEROUS_S) == ()
