"""Engines in processes of their own: loaded once, asked in turns, idle in between."""

from __future__ import annotations

import glob
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.machine import num_processors, peak_memory, tree
from pawl.gpu.weights.locate import locate

ROOT = Path(__file__).parent.parent
STOP_S = 20.0
BF16, FOUR_BITS = "bf16", "4 bits"
EMBEDDED = "smollm2"
READY_S = 600.0
"""A server that does not answer by then has failed. vLLM takes minutes on a small machine."""


@dataclass(frozen=True)
class Entry:
    """How one engine is started, for questions on a pipe and, where it has one, as a server."""

    key: str
    """Short name for the command line."""
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    server: Sequence[str] | None = None
    """Command of its HTTP server; `{port}` is filled in. None: it has no server worth measuring."""
    weights: str = BF16
    """What its weights are while it computes, BF16 or FOUR_BITS: engines are compared with those of the same."""


_PEERS = (
    ("vllm", "PAWL_PEER_VLLM", "PAWL_PEER_MODEL", BF16),
    ("transformers", "PAWL_PEER_HF", "PAWL_PEER_MODEL", BF16),
    ("llama", "PAWL_PEER_LLAMA", "PAWL_PEER_GGUF", BF16),
    ("llama", "PAWL_PEER_LLAMA", EMBEDDED, FOUR_BITS),
    ("openvino", "PAWL_PEER_OPENVINO", "PAWL_PEER_OPENVINO_BF16", BF16),
    ("openvino", "PAWL_PEER_OPENVINO", "PAWL_PEER_OPENVINO_INT4", FOUR_BITS),
)
"""Short name, the variables that name its interpreter and its model (or the embedded one), its weights."""


def entries(backend: str) -> list[Entry]:
    """This engine with either kind of weights, then each peer that the environment names; says which are left out."""
    found = [_pawl(backend, BF16), _pawl(backend, FOUR_BITS)]
    for key, variable, needed, weights in _PEERS:
        python = os.environ.get(variable, "")
        value = str(locate(EMBEDDED)) if needed == EMBEDDED else os.environ.get(needed, "")
        if not python or shutil.which(python) is None:
            print(f"{key}, {weights}: skipped, {variable} does not name its interpreter")
        elif not value or not Path(value).exists():
            print(f"{key}, {weights}: skipped, {needed} does not name its model")
        elif key == "vllm":
            found.append(_vllm(python, value))
        else:
            found.append(Entry(key, [python, "-m", f"benchmarks.peers_{key}", value], weights=weights))
    return found


def _pawl(backend: str, weights: str) -> Entry:
    """This engine: the embedded model as its file stores it, Q4_1 for the most part, or in bfloat16."""
    pawl = str(Path(sys.executable).with_name("pawl"))
    kind = {BF16: "bf16", FOUR_BITS: "stored"}[weights]
    server = [pawl, "serve", EMBEDDED, "--backend", backend, "--weights", kind, "--port", "{port}"]
    return Entry(
        "pawl",
        [sys.executable, "-m", "benchmarks.peers_pawl", backend, kind],
        server=[*server, "--log-level", "warning"],
        weights=weights,
    )


def _vllm(python: str, model: str) -> Entry:
    """vLLM with both processors and the preloads it recommends (as installed it leaves one processor idle)."""
    preloads = glob.glob("/usr/lib/*/libtcmalloc_minimal.so.4") + glob.glob(
        str(Path(python).parent.parent / "lib" / "libiomp5.so")
    )
    if len(preloads) < 2:
        print("vllm: tcmalloc or libiomp5 is missing, it runs slower without")
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{num_processors() - 1}",
        "LD_PRELOAD": ":".join(preloads),
    }
    limits = ["--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "64"]
    limits += ["--max-num-batched-tokens", "2048", "--disable-log-stats", "--disable-uvicorn-access-log"]
    server = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", "{port}", *limits]
    return Entry("vllm", [python, "-m", "benchmarks.peers_vllm", model], environment, server)


class Running:
    """A process of an engine, with what it prints to stderr kept for when it fails."""

    def __init__(self, entry: Entry, command: Sequence[str], **streams: Any) -> None:
        self.entry = entry
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in `close`)
        streams = {"stdout": self._errors, "stderr": self._errors} | streams
        environment = {**os.environ, **entry.environment}
        self.process: subprocess.Popen[str] = subprocess.Popen(
            list(command), cwd=ROOT, env=environment, text=True, start_new_session=True, **streams
        )

    def peak_memory(self) -> int:
        """Bytes so far, all its processes together."""
        return peak_memory(tree(self.process.pid))

    def failure(self) -> RuntimeError:
        """What is known about a process that does not answer."""
        self._errors.seek(0)
        return RuntimeError(f"{self.entry.key} failed (exit {self.process.poll()}):\n{self._errors.read()[-3000:]}")

    def close(self) -> None:
        """End it, and what it started."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        else:
            self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            for pid in tree(self.process.pid):
                os.kill(pid, 9)
            self.process.wait()
        self._errors.close()


@dataclass(frozen=True)
class Answer:
    """What an engine says about one question."""

    seconds: float
    first_tokens: Sequence[int]


class Contestant(Running):
    """An engine that answers questions on a pipe. `start_s`: from nothing to its first token."""

    def __init__(self, entry: Entry) -> None:
        began = time.perf_counter()
        super().__init__(entry, entry.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.name: str = self._read()["name"]
        self.ask([[504, 3575, 282, 4649, 314]], 1)
        self.start_s = time.perf_counter() - began

    def ask(self, prompts: Sequence[Sequence[int]], num_output: int) -> Answer:
        """Greedy answers of exactly `num_output` tokens. Raises RuntimeError with its last words when it fails."""
        stdin = self.process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps({"prompts": prompts, "num_output": num_output}) + "\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise self.failure() from error
        return Answer(**self._read())

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise self.failure()
        return json.loads(line)


class Server(Running):
    """An engine behind HTTP, on a free port of this machine; made when it answers."""

    def __init__(self, entry: Entry) -> None:
        assert entry.server is not None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(entry, [part.format(port=port) for part in entry.server], stdin=subprocess.DEVNULL)
        limit = time.monotonic() + READY_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > limit:
                error = self.failure()
                self.close()
                raise error
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v1/models", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False
