"""What is lost with a host, or the way to it: streams go on, what was cut off ends, and whoever can comes back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.kills import arguments, run, show
from benchmarks.second_host import ROOT, SecondHost
from pawl.actors.names import UNIFIED
from pawl.actors.runtime.processes.keys import make_keys, read_keys
from pawl.build.hosts.head import NodeHosts
from pawl.build.hosts.host import ReplicaFailed
from pawl.build.hosts.layout import layout_of
from pawl.build.replica_process import ReplicaProcess, started
from pawl.build.replicas import share_of
from pawl.config import ServerConfig
from pawl.engine import Engine
from pawl.lifecycle.audit import Verdict, audit
from pawl.lifecycle.states import Cause
from tests.actors.linked_systems import wait_for

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {"model": "ghost", "kv_tokens": 65536, "seed": 5, "dp": 2}
PROMPTS = [f"a prompt of its own, {number}" for number in range(8)]
LONG = {"max_new_tokens": 3000, "seed": 7, "ignore_eos": True}


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


class Deployment:
    """The front of an engine with a replica here and one on the second host."""

    def __init__(self, host: SecondHost, folder: Path, **settings: Any) -> None:
        make_keys(folder / "keys")
        listen = f"tcp://{host.head}:0"
        hosts = {"nodes": 2, "listen": listen, "keys": str(folder / "keys"), "trace_dir": str(folder / "traces")}
        self.config = ServerConfig(**SETTINGS | hosts | settings)
        layout, keys = layout_of(self.config), read_keys(folder / "keys")
        self.head = NodeHosts(layout, listen, keys, str(folder / "keys"), 60.0)
        self.host = host
        self.words = ("node", "--join", self.head.address, "--keys", str(folder / "keys"))
        self.node = host.start(*self.words)

    def engine(self) -> Engine:
        shares = [share_of(self.config, place) for place in range(2)]
        return Engine(self.config, parts=started(dict(enumerate(shares)), [UNIFIED] * 2, self.head))

    def end(self) -> None:
        self.head.close()
        self.node.terminate()
        self.node.wait(60.0)


@pytest.fixture
def deploy(host: SecondHost, tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    made: list[Deployment] = []

    def make(**settings: Any) -> Deployment:
        made.append(Deployment(host, tmp_path, **settings))
        return made[-1]

    yield make
    host.cable("up")
    for deployment in made:
        deployment.end()


def there(engine: Engine) -> list[ReplicaProcess]:
    """Replicas that live on the second host."""
    return [replica for replica in engine.replicas.live() if "node." in replica.where]


def texts_through(engine: Engine, meanwhile: Callable[[], None]) -> list[str]:
    """Of streams that were begun before something happens."""
    streams = [engine.stream(prompt, LONG) for prompt in PROMPTS]
    begun = [next(stream).text for stream in streams]
    meanwhile()
    return [first + "".join(delta.text for delta in rest) for first, rest in zip(begun, streams, strict=True)]


def test_streams_outlive_a_partition_and_who_was_cut_off_ends_and_comes_back(
    deploy: Callable[..., Deployment], host: SecondHost, tmp_path: Path
) -> None:
    deployment = deploy()
    with deployment.engine() as engine:
        undisturbed = texts_through(engine, lambda: None)
        (old,) = there(engine)
        assert texts_through(engine, lambda: host.cable("down")) == undisturbed
        assert engine.failure is None
        host.cable("up")
        wait_for(lambda: bool(there(engine)) and there(engine)[0].met.is_set())
        assert is_gone(old.ready.pid)
        assert there(engine)[0].where == f"replica-2 on node.2 at {host.address}"
        assert texts_through(engine, lambda: None) == undisturbed
    assert deployment.node.wait(60.0) == 0
    runs = sorted((tmp_path / "traces").glob("replica-*/run-*"))
    assert [audit(run).verdict for run in runs] == [Verdict.PASS, Verdict.INCOMPLETE, Verdict.PASS]


def test_a_replica_that_is_killed_on_a_node_is_told_by_the_node_and_started_again_there(
    deploy: Callable[..., Deployment], host: SecondHost
) -> None:
    deployment = deploy()
    with deployment.engine() as engine:
        undisturbed = texts_through(engine, lambda: None)
        (old,) = there(engine)
        assert texts_through(engine, lambda: os.kill(old.ready.pid, signal.SIGKILL)) == undisturbed
        wait_for(lambda: bool(there(engine)) and there(engine)[0].met.is_set())
        assert there(engine)[0].where == f"replica-2 on node.1 at {host.address}"
    assert deployment.node.wait(60.0) == 0


def test_a_node_that_is_told_to_end_takes_its_replicas_away_and_ends_with_0(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy()
    with deployment.engine() as engine:
        undisturbed = texts_through(engine, lambda: None)
        (old,) = there(engine)
        assert texts_through(engine, deployment.node.terminate) == undisturbed
        assert deployment.node.wait(60.0) == 0
        assert is_gone(old.ready.pid)


def test_what_a_node_cannot_load_is_refused_with_its_name(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    deployment = deploy(model=str(tmp_path / "nothing"), dp=1, nodes=1, head_serves=False)
    refused = rf"replica-0 on node\.1 at {deployment.host.address}: model '.*nothing': no such file or folder"
    with pytest.raises(ReplicaFailed, match=refused):
        started({0: deployment.config}, [UNIFIED], deployment.head)


# ---- the head as users start it ----


class Head:
    """`pawl serve` here."""

    def __init__(self, folder: Path, join: str) -> None:
        self._log = folder / "log"
        words = ["serve", "ghost", "--port", "0", "--dp", "2", "--nodes", "2", "--listen", join, "--log-format", "json"]
        words += ["--keys", str(folder / "keys"), "--trace-dir", str(folder / "traces"), "--kv-tokens", "65536"]
        with self._log.open("wb") as log:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", "pawl.cli", *words]
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)

    def url(self) -> str:
        """Once it serves."""
        found: list[str] = []
        wait_for(lambda: bool(found.extend(re.findall(r'"url":"([^"]+)"', self._log.read_text())) or found))
        return found[0]


def test_nodes_end_what_they_compute_for_a_head_that_is_killed_and_join_the_next_one(
    host: SecondHost, tmp_path: Path
) -> None:
    make_keys(tmp_path / "keys")
    join = f"tcp://{host.head}:{20000 + os.getpid() % 9000}"
    node = host.start("node", "--join", join, "--keys", str(tmp_path / "keys"))
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 30000, "ignore_eos": True}, "stream": True}
    head = Head(tmp_path, join)
    with httpx.Client(timeout=60.0) as client:
        streams = [client.stream("POST", f"{head.url()}/generate", json=body) for _ in range(2)]
        for stream in streams:
            next(stream.__enter__().iter_lines())
        head.process.kill()
        head.process.wait()
        trace = tmp_path / "traces" / "replica-1" / "run-000001"
        wait_for(lambda: audit(trace).causes.get(Cause.DISCONNECT) == 1)
        head = Head(tmp_path, join)
        answer = client.post(f"{head.url()}/generate", json={"text": "hello", "sampling_params": {"max_new_tokens": 8}})
        assert answer.status_code == 200
    head.process.terminate()
    assert (head.process.wait(60.0), node.wait(60.0)) == (0, 0)


def test_streaming_clients_of_two_hosts_notice_no_kill(tmp_path: Path, host: SecondHost) -> None:
    report = run(tmp_path, host, arguments(["--seconds", "60", "--clients", "32", "--dp", "4"]))
    print("\n".join(show(report)))
    assert (report.errors, report.violations) == ([], [])
    assert report.exits == {"front": 0, "agent": 0}
    assert report.rss_mb[-1] < 1.2 * report.rss_mb[0]
