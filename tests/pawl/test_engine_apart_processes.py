"""Prefill and decode apart, each replica in a process of its own: links between them, and what is lost with one."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.second_host import SecondHost
from pawl.actors.names import DECODE, PREFILL
from pawl.actors.prefillers import Prefillers
from pawl.actors.router import Router
from pawl.actors.runtime.processes.keys import make_keys
from pawl.build.nixl_pages import installed
from pawl.build.replica_process import ReplicaProcess
from pawl.cli import main
from pawl.config import ServerConfig, build_config
from pawl.engine import Engine
from pawl.lifecycle.records import TierTold
from pawl.lifecycle.trace.reader import TraceReader
from tests.actors.linked_systems import wait_for
from tests.pawl.asking import state_of

ROLES = (PREFILL, DECODE)
PROMPTS = [f"request {number}: " + "a long prompt whose pages are worth the way " * 6 for number in range(6)]
SAMPLING = {"max_new_tokens": 8, "temperature": 0.0}


def config(folder: Path, **fields: Any) -> ServerConfig:
    given = {"model": "ghost", "trace_dir": str(folder), "context_length": 1024, "page_size": 16, "seed": 1}
    # A shorter lease would end some hand-overs on a busy machine.
    return build_config(given | {"prefill_lease_s": 3600.0} | fields)


def prefillers_of(engine: Engine) -> Prefillers:
    (router,) = [spec.actor for spec in engine._actors if isinstance(spec.actor, Router)]
    return router.fleet.prefillers


def free_port() -> int:
    """One that nobody has, nor the next."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def linked(engine: Engine, prefill: int, decode: int, restarts: int = 0) -> bool:
    """Whether as many replicas of each role are there, so many were started again, and all have met."""
    prefillers = prefillers_of(engine)
    links = prefillers._links
    assert links is not None
    pairs = [(one, other) for one in list(prefillers.replicas) for other in list(prefillers._serving)]
    newest = max((each.names.replica for each in engine.replicas.live()), default=0)
    started = len(prefillers.replicas) + len(prefillers._serving) + restarts == newest + 1
    return started and len(pairs) == prefill * decode and all(links.up(*pair) for pair in pairs)


@contextmanager
def apart(folder: Path, prefill: int = 1, decode: int = 1, **fields: Any) -> Iterator[Engine]:
    """An engine whose replicas have met."""
    with Engine(config(folder, disaggregate=f"{prefill}p{decode}d", runtime="processes", **fields)) as engine:
        wait_for(lambda: linked(engine, prefill, decode))
        yield engine


def kill(engine: Engine, role: str) -> None:
    """A replica of this role, as a machine would."""
    replica = next(each for each in engine.replicas.live() if each.names.role == role)
    assert isinstance(replica, ReplicaProcess)
    os.kill(replica.ready.pid, signal.SIGKILL)


def received(run: Path) -> list[TierTold]:
    """What the decode replica of this run was handed over."""
    told = [record for record in TraceReader(run) if isinstance(record, TierTold)]
    return [record for record in told if record.kind == "received"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What one replica says."""
    with Engine(config(tmp_path_factory.mktemp("alone"))) as engine:
        return [completion.text for completion in engine.generate(PROMPTS, SAMPLING)]


def test_whichever_side_is_killed_requests_go_on_a_new_one_is_linked_and_the_traces_of_those_that_end_pass(
    alone: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with apart(tmp_path) as engine:
        said = [completion.text for completion in engine.generate(PROMPTS, SAMPLING)]
        for killed, role in enumerate((PREFILL, DECODE), start=1):
            streams = [engine.stream(prompt, SAMPLING) for prompt in PROMPTS]
            kill(engine, role)
            assert ["".join(delta.text for delta in stream) for stream in streams] == alone
            wait_for(partial(linked, engine, 1, 1, restarts=killed))
        engine.generate([f"another one, {prompt}" for prompt in PROMPTS], SAMPLING)
        assert engine.failure is None
    assert said == alone
    first, last = tmp_path / "replica-0" / "run-000001", tmp_path / "replica-0" / "run-000002"
    assert [record.count for record in received(first)][: len(PROMPTS)] == [17] * len(PROMPTS)
    assert all(record.count >= 16 for record in received(last)[-len(PROMPTS) :])
    assert main(["audit", str(last), str(tmp_path / "replica-1" / "run-000002")]) == 0
    assert "hand-overs: " in capsys.readouterr().out


@pytest.mark.skipif(not installed(), reason="NIXL is not installed: pip install 'pawl-engine[nixl]'")
def test_pages_that_are_read_through_nixl_are_those_of_one_replica(alone: list[str], tmp_path: Path) -> None:
    with apart(tmp_path, page_transport="nixl") as engine:
        for prompt, words in zip(PROMPTS, alone, strict=True):
            assert [completion.text for completion in engine.generate([prompt], SAMPLING)] == [words]
        wait_for(lambda: any(each["tiers"].get("shared_pages", 0) for each in state_of(engine)["replicas"]))


@pytest.mark.slow
@pytest.mark.parametrize("listen", ["{head}", "0.0.0.0"])
def test_replicas_on_two_hosts_are_linked_with_keys_and_a_node_that_dies_costs_no_request(
    listen: str, host: SecondHost, alone: list[str], tmp_path: Path
) -> None:
    make_keys(tmp_path / "keys")
    port = free_port()
    fields = {"nodes": 2, "listen": f"tcp://{listen.format(head=host.head)}:{port}", "keys": str(tmp_path / "keys")}
    words = ("node", "--join", f"tcp://{host.head}:{port}", "--keys", str(tmp_path / "keys"))
    node = host.start(*words)
    try:
        with apart(tmp_path / "traces", **fields) as engine:
            on_node, here = (next(each for each in engine.replicas.live() if each.names.role == role) for role in ROLES)
            assert (on_node.where, here.where) == (f"replica-1 on node.1 at {host.address}", "replica-0")
            assert [completion.text for completion in engine.generate(PROMPTS, SAMPLING)] == alone
            streams = [engine.stream(f"again, {prompt}", SAMPLING) for prompt in PROMPTS]
            node.kill()
            node.wait()
            again = ["".join(delta.text for delta in stream) for stream in streams]
            assert len(again) == len(PROMPTS)
            node = host.start(*words)
            wait_for(partial(linked, engine, 1, 1, restarts=1))
            assert [completion.text for completion in engine.generate(PROMPTS, SAMPLING)] == alone
    finally:
        node.kill()
        node.wait()
    assert [record.count for record in received(tmp_path / "traces" / "replica-0" / "run-000001")][:6] == [17] * 6
