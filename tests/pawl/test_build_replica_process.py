"""A replica in a process of its own: it serves as one in threads does, is refused with reasons, and may die."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
import structlog

from pawl.actors.names import UNIFIED, names_of
from pawl.actors.runtime.processes.wires import SocketWire
from pawl.build.hosts.child import Child
from pawl.build.hosts.host import Host, OneHost, ReplicaFailed, Running
from pawl.build.parent import Parent
from pawl.build.ready import HERE, Setup
from pawl.build.replica_process import ReplicaProcess, check_alike, started
from pawl.build.replica_processes import ProcessReplicas
from pawl.build.wiring import PROCESS_OF, all_names
from pawl.config import ConfigError, ServerConfig
from pawl.engine import Engine, RequestFailed
from pawl.gpu.frames import write_frame
from pawl.lifecycle.audit import Verdict, audit
from pawl.lifecycle.states import Cause

PROMPTS = [f"a prompt of its own, {number}" for number in range(8)]
SAMPLING = {"max_new_tokens": 24, "seed": 7}
ROOT = Path(__file__).parent.parent.parent


def config(folder: Path, runtime: str = "processes", **settings: object) -> ServerConfig:
    return ServerConfig(model="ghost", runtime=runtime, kv_tokens=8192, seed=5, trace_dir=str(folder), **settings)  # type: ignore[arg-type]


def replica_of(engine: Engine, place: int = 0) -> ReplicaProcess:
    made = engine.replicas.live()[place]
    assert isinstance(made, ReplicaProcess)
    return made


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_replica_of_its_own_process_says_the_same_words_and_its_trace_passes(tmp_path: Path) -> None:
    words = []
    for runtime in ("local", "processes"):
        with Engine(config(tmp_path / runtime, runtime)) as engine:
            words.append([completion.text for completion in engine.generate(PROMPTS, SAMPLING)])
    assert words[0] == words[1]
    assert is_gone(replica_of(engine).ready.pid)
    report = audit(tmp_path / "processes" / "run-000001")
    assert (report.verdict, report.num_requests) == (Verdict.PASS, len(PROMPTS))


def test_streams_of_replicas_that_are_killed_go_on_where_their_clients_are(tmp_path: Path) -> None:
    texts = []
    for runtime in ("local", "processes"):
        with Engine(config(tmp_path / runtime, runtime, dp=2)) as engine:
            streams = [engine.stream(prompt, {"max_new_tokens": 400, "seed": 7}) for prompt in PROMPTS]
            begun = [next(stream).text for stream in streams]
            if runtime == "processes":
                for replica in (0, 1):
                    os.kill(replica_of(engine, replica).ready.pid, signal.SIGKILL)
            texts.append(
                [first + "".join(delta.text for delta in rest) for first, rest in zip(begun, streams, strict=True)]
            )
            assert engine.failure is None
    assert texts[0] == texts[1]


def test_where_none_is_started_again_its_requests_end_with_the_reason_and_the_engine_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProcessReplicas, "restart", lambda replicas, lost, why_not="": why_not or "one was enough")
    with Engine(config(tmp_path)) as engine:
        stream = engine.stream("hello", {"max_new_tokens": 4000})
        next(stream)
        os.kill(replica_of(engine).ready.pid, signal.SIGKILL)
        with pytest.raises(RequestFailed, match=r"scheduler.0 is gone: .* killed by signal 9") as failed:
            list(stream)
    assert failed.value.cause is Cause.INTERNAL
    assert engine.failure is not None
    assert engine.failure.actor == "router"


def test_signals_to_end_that_all_processes_of_a_service_get_end_no_replica_before_its_front(tmp_path: Path) -> None:
    with Engine(config(tmp_path)) as engine:
        stream = engine.stream("hello", {"max_new_tokens": 400, "seed": 7})
        next(stream)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(replica_of(engine).ready.pid, number)
        list(stream)
        assert replica_of(engine).names.replica == 0


def test_a_front_that_is_gone_while_its_replica_loads_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "link"
    folder.mkdir()
    settings = msgspec.to_builtins(config(tmp_path / "traces"))
    setup = Setup(settings, names_of(0), "replica-0", f"ipc://{folder}/replica-0", 0.005)
    told = io.BytesIO()
    write_frame(told, msgspec.msgpack.encode(setup))
    child = subprocess.run(
        [sys.executable, "-m", "pawl.build.replica"], input=told.getvalue(), cwd=ROOT, capture_output=True, check=False
    )
    assert (child.returncode, folder.exists()) == (1, False)


FRONT = """
import os, sys
from pawl.config import ServerConfig
from pawl.engine import Engine
engine = Engine(ServerConfig(model="ghost", runtime="processes", kv_tokens=65536, trace_dir=sys.argv[1])).start()
for delta in engine.stream("hello", {"max_new_tokens": 30000}):
    print(engine.parts.ready.pid, flush=True)
    sys.stdin.read()
"""


def test_a_front_that_is_gone_is_not_told_that_its_replica_could_not_be_loaded() -> None:
    target = io.BytesIO()
    parent = Parent(Setup({}, names_of(0), "replica-0", "ipc:///nowhere", 0.005), ServerConfig(), io.BytesIO(), target)
    with structlog.testing.capture_logs() as told:
        parent.refuse(BrokenPipeError(), structlog.get_logger(), "the replica could not be loaded")
    assert (target.getvalue(), told) == (b"", [])


def test_the_death_of_the_front_ends_its_requests_as_of_clients_that_hung_up_and_the_replica(tmp_path: Path) -> None:
    front = subprocess.Popen(
        [sys.executable, "-c", FRONT, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert front.stdout is not None
    pid = int(front.stdout.readline())
    front.kill()
    front.communicate()  # until the replica, which writes its log there, has ended too
    assert is_gone(pid) or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    report = audit(tmp_path / "run-000001")
    assert (report.verdict, report.causes) == (Verdict.INCOMPLETE, {Cause.DISCONNECT: 1})


@pytest.mark.slow
def test_what_a_server_leaves_whose_processes_are_all_killed_goes_with_the_next_start(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    words = [sys.executable, "-m", "pawl.cli", "serve", "ghost", "--runtime", "processes", "--dp", "2", "--port", "0"]
    places = ["--kv-tokens", "65536", "--trace-dir", str(tmp_path / "traces")]
    here = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(below)}

    def serve() -> subprocess.Popen[str]:
        server = subprocess.Popen([*words, *places], cwd=ROOT, env=here, stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        assert any("try: curl" in line for line in server.stderr)
        return server

    server = serve()
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").parent.parent.glob("*/children")
    pids = [int(pid) for each in children for pid in each.read_text().split()]
    assert len(pids) >= 2
    os.kill(server.pid, signal.SIGSTOP)  # so that it can remove nothing of theirs
    for pid in (*pids, server.pid):
        os.kill(pid, signal.SIGKILL)
    server.wait()
    left = list(below.iterdir())
    assert left
    server = serve()
    assert not set(left) & set(below.iterdir())
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not list(below.iterdir())


def test_settings_that_cannot_be_are_refused_by_the_replica_and_told_by_the_front(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype: the ghost computes no model"):
        started({0: config(tmp_path, dtype="bf16")}, [UNIFIED], OneHost())


def test_a_replica_that_dies_while_it_loads_is_told_with_how_it_ended(tmp_path: Path) -> None:
    class Deadly(OneHost):
        """Its processes are killed before they can say anything."""

        def of(self, place: int, stopping: threading.Event) -> Host:
            return self

        name = ""
        home = HERE

        def bind(self, process: str) -> SocketWire:
            return super().of(0, threading.Event()).bind(process)

        def start(self, setup: Setup) -> Running:
            child = Child(setup)
            os.kill(child.pid, signal.SIGKILL)
            return child

    with pytest.raises(ReplicaFailed, match="before it was ready: killed by signal 9"):
        started({0: config(tmp_path)}, [UNIFIED], Deadly())


def test_processes_that_differ_are_refused_with_what_each_has() -> None:
    check_alike({"front": {"version": "1"}, "replica": {"version": "1", "max tokens": 64}})
    with pytest.raises(ReplicaFailed, match="max tokens differs: 64 in the replica, 128 in the other"):
        check_alike({"replica": {"max tokens": 64}, "other": {"max tokens": 128}})


def test_each_actor_of_an_engine_has_a_process() -> None:
    assert set(PROCESS_OF.values()) == {"front", "replica"}
    assert len(set(all_names())) == len(PROCESS_OF)
