"""Prefill and decode on hosts of their own, by role: who is refused, and who comes back in its place."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.second_host import NoSecondHost, SecondHost, more_hosts
from pawl.actors.names import DECODE, PREFILL
from pawl.actors.runtime.processes.keys import make_keys
from pawl.engine import Engine
from tests.actors.linked_systems import wait_for
from tests.pawl.test_engine_apart_processes import PROMPTS, SAMPLING, apart, config, free_port, linked, received

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[SecondHost]]:
    """Two hosts beside this one."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(more_hosts(2))
        except NoSecondHost as error:
            pytest.skip(str(error))
        yield found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What one replica says."""
    with Engine(config(tmp_path_factory.mktemp("alone"))) as engine:
        return texts(engine)


def texts(engine: Engine) -> list[str]:
    return [completion.text for completion in engine.generate(PROMPTS, SAMPLING)]


class Nodes:
    """Agents on these hosts, each with a role."""

    def __init__(self, hosts: list[SecondHost], folder: Path) -> None:
        make_keys(folder / "keys")
        self.listen = f"tcp://{hosts[0].head}:{free_port()}"
        self.settings: dict[str, Any] = {"listen": self.listen, "keys": str(folder / "keys")}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def words(self, role: str) -> tuple[str, ...]:
        return ("node", "--join", self.listen, "--keys", self.settings["keys"], "--role", role)

    def start(self, host: SecondHost, role: str) -> None:
        self.running[host.name] = host.start(*self.words(role))

    def kill(self, host: SecondHost) -> None:
        """As a machine would be that loses power."""
        node = self.running.pop(host.name)
        node.kill()
        node.wait()

    def ended(self) -> list[int]:
        """How all have ended by themselves."""
        return [node.wait(60.0) for node in self.running.values()]


@pytest.fixture
def nodes(hosts: list[SecondHost], tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(hosts, tmp_path)
    yield made
    for node in made.running.values():
        node.kill()
        node.wait()


def where(engine: Engine, role: str) -> list[str]:
    """Hosts of the replicas of this role."""
    found = [each.where for each in engine.replicas.live() if each.names.role == role]
    return sorted(each.rpartition(" ")[2] if " at " in each else "here" for each in found)


def test_nodes_take_the_place_of_their_role_in_whichever_order_they_come_and_again_when_they_were_killed(
    nodes: Nodes, hosts: list[SecondHost], alone: list[str], tmp_path: Path
) -> None:
    prefills, decodes = hosts
    nodes.start(prefills, PREFILL)
    nodes.start(decodes, DECODE)
    traces = tmp_path / "traces"
    with apart(traces, nodes=2, head_serves=False, **nodes.settings) as engine:
        for restarts, (killed, role) in enumerate(((prefills, PREFILL), (decodes, DECODE)), start=1):
            assert (where(engine, PREFILL), where(engine, DECODE)) == ([prefills.address], [decodes.address])
            assert texts(engine) == alone
            streams = [engine.stream(prompt, SAMPLING) for prompt in PROMPTS]
            nodes.kill(killed)
            nodes.start(killed, role)
            assert ["".join(delta.text for delta in stream) for stream in streams] == alone
            wait_for(partial(linked, engine, 1, 1, restarts=restarts))
        assert texts(engine) == alone
        assert (where(engine, PREFILL), where(engine, DECODE)) == ([prefills.address], [decodes.address])
        assert engine.failure is None
    assert nodes.ended() == [0, 0]
    assert [record.count for record in received(traces / "replica-0" / "run-000001")][:6] == [17] * 6


def test_two_nodes_decode_for_a_head_that_prefills_and_one_that_would_prefill_is_refused(
    nodes: Nodes, hosts: list[SecondHost], alone: list[str], tmp_path: Path
) -> None:
    for host in hosts:
        nodes.start(host, DECODE)
    with apart(tmp_path / "traces", 1, 2, nodes=3, role=PREFILL, **nodes.settings) as engine:
        assert (where(engine, PREFILL), where(engine, DECODE)) == (["here"], sorted(host.address for host in hosts))
        assert texts(engine) == alone
        refused = hosts[0].start(*nodes.words(PREFILL), stderr=subprocess.PIPE)
        _, told = refused.communicate(timeout=60.0)
        assert refused.returncode == 1
        line = "pawl: no node is needed for prefill: those that join are for decode"
        assert told.decode().strip().splitlines()[-1] == line
    assert nodes.ended() == [0, 0]
    assert received(tmp_path / "traces" / "replica-0" / "run-000001")


def test_two_nodes_prefill_for_a_head_that_decodes_and_go_on_when_one_is_killed(
    nodes: Nodes, hosts: list[SecondHost], alone: list[str], tmp_path: Path
) -> None:
    for host in hosts:
        nodes.start(host, PREFILL)
    with apart(tmp_path / "traces", 2, 1, nodes=3, **nodes.settings) as engine:
        assert (where(engine, PREFILL), where(engine, DECODE)) == (sorted(host.address for host in hosts), ["here"])
        streams = [engine.stream(prompt, SAMPLING) for prompt in PROMPTS]
        nodes.kill(hosts[0])
        assert ["".join(delta.text for delta in stream) for stream in streams] == alone
        nodes.start(hosts[0], PREFILL)
        wait_for(partial(linked, engine, 2, 1, restarts=1))
        assert texts(engine) == alone
    assert nodes.ended() == [0, 0]


def test_two_replicas_of_one_node_prefill_for_a_head_that_decodes_alone_and_again_when_the_node_was_killed(
    nodes: Nodes, hosts: list[SecondHost], alone: list[str], tmp_path: Path
) -> None:
    """`2p1d --nodes 2`: hosts that do not have as many replicas each have one role each."""
    nodes.start(hosts[0], PREFILL)
    with apart(tmp_path / "traces", 2, 1, nodes=2, **nodes.settings) as engine:
        assert (where(engine, PREFILL), where(engine, DECODE)) == ([hosts[0].address] * 2, ["here"])
        assert texts(engine) == alone
        streams = [engine.stream(prompt, SAMPLING) for prompt in PROMPTS]
        nodes.kill(hosts[0])
        nodes.start(hosts[0], PREFILL)
        assert ["".join(delta.text for delta in stream) for stream in streams] == alone
        wait_for(partial(linked, engine, 2, 1, restarts=2))
        assert texts(engine) == alone
    assert nodes.ended() == [0]
    assert {record.count for record in received(tmp_path / "traces" / "replica-0" / "run-000001")} >= {17}


def test_ranks_of_torchrun_have_the_roles_of_their_places_in_whichever_order_they_come(
    nodes: Nodes, hosts: list[SecondHost], alone: list[str], tmp_path: Path
) -> None:
    """`2p1d` with three ranks, of which the last one comes first, and the head prefills."""
    words = ("serve", "ghost", "--disaggregate", "2p1d", "--role", PREFILL, "--keys", nodes.settings["keys"])
    head, _, port = nodes.listen.removeprefix("tcp://").rpartition(":")
    variables = {"WORLD_SIZE": "3", "MASTER_ADDR": head, "MASTER_PORT": str(int(port) - 1)}
    for rank, host in ((2, hosts[1]), (1, hosts[0])):
        nodes.running[host.name] = host.start(*words, env=variables | {"RANK": str(rank)})
    with apart(tmp_path / "traces", 2, 1, nodes=3, role=PREFILL, **nodes.settings) as engine:
        assert (where(engine, PREFILL), where(engine, DECODE)) == ([hosts[1].address, "here"], [hosts[0].address])
        assert texts(engine) == alone
    assert nodes.ended() == [0, 0]
