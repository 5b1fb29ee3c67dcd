"""Stages of a model on two hosts: the tokens of one process, whatever dies on either."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.second_host import SecondHost
from pawl.actors.runtime.processes.keys import make_keys
from pawl.config import build_config
from pawl.engine import Engine
from pawl.lifecycle.audit import Verdict, audit
from tests.actors.linked_systems import wait_for
from tests.pawl.test_build_hosts_losses import is_gone
from tests.pawl.test_build_ranks import GREEDY, SETTINGS, answers, prompts, tiny
from tests.pawl.test_engine_apart_processes import free_port

pytestmark = pytest.mark.slow

LONG = GREEDY | {"max_new_tokens": 80}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with 3 layers and 2 groups of heads."""
    return tiny("llama", tmp_path_factory.mktemp("llama"))


class Deployment:
    """A head here, and a node on the second host."""

    def __init__(self, host: SecondHost, model: Path, folder: Path) -> None:
        make_keys(folder / "keys")
        self.traces = folder / "traces"
        self.host, self._listen, self._keys = host, f"tcp://{host.head}:{free_port()}", str(folder / "keys")
        self._settings = SETTINGS | {"model": str(model), "trace_dir": str(self.traces), "pp": 2, "nodes": 2}
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.join()

    def join(self) -> None:
        """Start an agent there."""
        self.nodes.append(self.host.start("node", "--join", self._listen, "--keys", self._keys))

    @contextmanager
    def engine(self, **more: Any) -> Iterator[Engine]:
        """It, and in the end the node leaves as it should."""
        where = {"listen": self._listen, "keys": self._keys}
        with Engine(build_config(self._settings | where | more)) as engine:
            yield engine
        assert self.nodes[-1].wait(60.0) == 0

    def verdicts(self) -> list[Verdict]:
        return [audit(run).verdict for run in sorted(self.traces.glob("**/run-*"))]

    def end(self) -> None:
        self.host.cable("up")
        for node in self.nodes:
            node.kill()
            node.wait()


@pytest.fixture
def deployment(host: SecondHost, folder: Path, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(host, folder, tmp_path)
    yield made
    made.end()


def ranks(engine: Engine) -> list[dict[str, Any]]:
    """Of all replicas that serve."""
    return [rank for replica in engine.control("state")["replicas"] for rank in replica["ranks"]]


def hosts_of(engine: Engine) -> list[str]:
    return ["there" if rank["host"] else "here" for rank in ranks(engine)]


def tokens_through(engine: Engine, meanwhile: Callable[[], None] = lambda: None) -> list[list[int]]:
    """Of streams that were begun before something happens."""
    streams = [engine.stream(prompt, LONG) for prompt in prompts(6)]
    found = [list(next(stream).tokens) for stream in streams]
    meanwhile()
    for tokens, stream in zip(found, streams, strict=True):
        for delta in stream:
            tokens += delta.tokens
    return found


NATIVE = {"backend": "native", "dtype": "bf16", "deterministic": True}
LAYOUTS: list[tuple[dict[str, Any], list[str]]] = [
    (NATIVE, ["here", "there"]),
    ({"backend": "torch"}, ["here", "there"]),
    (NATIVE | {"pp": 3}, ["here", "here", "there"]),
    (NATIVE | {"tp": 2}, ["here", "here", "there", "there"]),
    ({"tp": 2, "backend": "torch"}, ["here", "here", "there", "there"]),
    (NATIVE | {"dp": 2, "nodes_per_replica": 2}, ["here", "there"] * 2),
]


@pytest.mark.parametrize(("more", "hosts"), LAYOUTS, ids=str)
def test_stages_on_two_hosts_have_the_tokens_of_one_process(
    more: dict[str, Any], hosts: list[str], deployment: Deployment, folder: Path, tmp_path: Path
) -> None:
    asked, sampled = prompts(8), GREEDY | {"temperature": 0.8, "seed": 7}
    alone = {name: value for name, value in more.items() if name in ("backend", "dtype", "deterministic")}
    expected = answers(folder, tmp_path / "alone", asked, sampled, **alone)
    with deployment.engine(**more) as engine:
        assert [each.tokens for each in engine.generate(asked, sampled)] == expected
        assert hosts_of(engine) == hosts
        pids = [rank["pid"] for rank in ranks(engine)]
    assert all(map(is_gone, pids))
    assert set(deployment.verdicts()) == {Verdict.PASS}


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_is_killed_on_either_host_is_started_again_there_and_no_stream_lacks_a_token(
    number: int, deployment: Deployment
) -> None:
    with deployment.engine() as engine:
        expected = tokens_through(engine)
        before = ranks(engine)
        assert tokens_through(engine, lambda: os.kill(before[number]["pid"], signal.SIGKILL)) == expected
        after = ranks(engine)
        assert [rank["restarts"] for rank in after] == [1, 1]
        assert not {rank["pid"] for rank in before} & {rank["pid"] for rank in after}
        assert hosts_of(engine) == ["here", "there"]
        assert all(is_gone(rank["pid"]) for rank in before)
        assert [replica.names.replica for replica in engine.replicas.live()] == [0]
    assert deployment.verdicts() == [Verdict.PASS]


def test_a_rank_that_stands_still_on_another_host_is_found_by_the_deadline_of_its_step(deployment: Deployment) -> None:
    with deployment.engine(rank_timeout_s=5.0) as engine:
        expected = tokens_through(engine)
        assert tokens_through(engine, lambda: os.kill(ranks(engine)[1]["pid"], signal.SIGSTOP)) == expected
        assert [rank["restarts"] for rank in ranks(engine)] == [1, 1]
    assert deployment.verdicts() == [Verdict.PASS]


def outpost(engine: Engine) -> int:
    """The process that has started the ranks on the second host: their parent."""
    fields = Path(f"/proc/{ranks(engine)[1]['pid']}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1])


def kill_outpost(engine: Engine, deployment: Deployment) -> None:
    os.kill(outpost(engine), signal.SIGKILL)


def kill_replica(engine: Engine, deployment: Deployment) -> None:
    (home,) = engine.replicas.homes()
    os.kill(home["pid"], signal.SIGKILL)


def kill_agent(engine: Engine, deployment: Deployment) -> None:
    deployment.nodes[-1].kill()
    deployment.nodes[-1].wait()
    deployment.join()


def part(engine: Engine, deployment: Deployment) -> None:
    """Longer than ten heartbeats."""
    lost = ranks(engine)[1]["pid"]
    deployment.host.cable("down")
    wait_for(lambda: is_gone(lost))
    deployment.host.cable("up")


@pytest.mark.parametrize("fall", [kill_outpost, kill_replica, kill_agent, part])
def test_whatever_is_lost_between_the_hosts_of_a_replica_its_streams_go_on_in_one_that_is_started_in_its_place(
    fall: Callable[[Engine, Deployment], None], deployment: Deployment
) -> None:
    with deployment.engine() as engine:
        expected = tokens_through(engine)
        before = ranks(engine)
        assert tokens_through(engine, lambda: fall(engine, deployment)) == expected
        wait_for(lambda: hosts_of(engine) == ["here", "there"])
        assert [replica.names.replica for replica in engine.replicas.live()] == [1]
        assert all(is_gone(rank["pid"]) for rank in before)
    first, second = deployment.verdicts()
    assert (first in (Verdict.PASS, Verdict.INCOMPLETE), second) == (True, Verdict.PASS)
