"""`python -m benchmarks.apart`: long prompts beside decoding clients, with prefill apart and without.

The model is a ghost on modelled devices: a step takes some milliseconds, and more for each prompt token in it; or with
`--model smollm2` one that computes on this CPU. Three servers in turns: one replica, two of them behind the router, and
one that prefills for one that decodes; in threads, or with `--runtime processes` in a process each. Told are the gaps
between the tokens of clients that decode all the time, and how long the first token of a long prompt takes.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pawl.actors.names import NAMES, names_of
from pawl.build import replica
from pawl.build.ghost import load_ghost
from pawl.build.hosts.child import Child
from pawl.build.hosts.host import OneHost, Running, ThisHost
from pawl.build.parts import Parts
from pawl.build.ready import Setup
from pawl.build.replica_process import started
from pawl.build.replicas import share_of
from pawl.build.roles import roles_of
from pawl.config import ServerConfig, build_config
from pawl.engine import Engine
from pawl.gpu.children import python, start

SERVERS: dict[str, dict[str, Any]] = {
    "one replica": {},
    "two replicas": {"dp": 2},
    "1p1d": {"disaggregate": "1p1d"},
}


OF_A_GHOST: dict[str, Any] = {"kv_tokens": 1 << 17, "context_length": 16384, "prefill_chunk": 2048}
OF_OTHERS: dict[str, Any] = {"kv_tokens": 1 << 15, "context_length": 8192}
"""Their pages are large."""
SETTLE_S = {"local": 1.0, "processes": 3.0}
"""Until all decode, and replicas in processes have met each other."""


class Times(NamedTuple):
    """Of a device."""

    step_s: float
    token_s: float
    """Of a prompt token, more."""

    def on(self, parts: Parts) -> Parts:
        """The same, whose runner takes so long."""
        return replace(parts, runner=Modelled(parts.runner, self))


class Modelled:
    """A runner whose steps take as long as those of a device."""

    def __init__(self, runner: Any, times: Times) -> None:
        self._runner = runner
        self._times = times
        self._prompt_tokens: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def launch(self, batch: Any) -> Any:
        self._prompt_tokens[batch.step] = int(batch.lengths[batch.lengths > 1].sum())
        return batch.step, self._runner.launch(batch)

    def collect(self, launched: Any) -> Any:
        step, inner = launched
        time.sleep(self._times.step_s + self._times.token_s * self._prompt_tokens.pop(step, 0))
        return self._runner.collect(inner)


class ModelledChild(Child):
    """The process of a replica on such a device."""

    def __init__(self, setup: Setup, times: Times) -> None:
        self._times = times
        super().__init__(setup)

    def _start(self) -> subprocess.Popen[bytes]:
        words = [*python("benchmarks.apart"), "--replica", *map(str, self._times)]
        return start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


class ModelledHost(ThisHost):
    """This one, with such devices."""

    times: Times

    def start(self, setup: Setup) -> Running:
        return ModelledChild(setup, self.times)


class ModelledHosts(OneHost):
    """It alone."""

    def __init__(self, times: Times) -> None:
        super().__init__()
        self._host.close()
        self._host = ModelledHost(self.sockets)
        self._host.times = times


def be_replica(times: Times) -> None:
    """What `pawl.build.replica` does, on such a device."""
    load = replica.load_here
    replica.load_here = lambda *words: times.on(load(*words))
    replica.main()


def modelled(config: ServerConfig, times: Times) -> Engine:
    """An engine all of whose replicas are ghosts on such devices."""
    roles = roles_of(config)
    shares = [share_of(config, place) for place in range(len(roles))]
    if config.in_processes:
        return Engine(config, parts=started(dict(enumerate(shares)), roles, ModelledHosts(times)))
    names = [names_of(place, role) for place, role in enumerate(roles)] if len(roles) > 1 else [NAMES]
    return Engine(config, parts=[times.on(load_ghost(*each)) for each in zip(shares, names, strict=True)])


class Client(threading.Thread):
    """Reads one stream, and notes when its tokens came."""

    def __init__(self, engine: Engine, prompt: list[int], tokens: int) -> None:
        super().__init__(daemon=True)
        self._engine, self._prompt, self._tokens = engine, prompt, tokens
        self.began = 0.0
        self.times: list[float] = []

    def run(self) -> None:
        self.began = time.monotonic()
        sampling = {"max_new_tokens": self._tokens, "ignore_eos": True, "temperature": 0}
        for delta in self._engine.stream(self._prompt, sampling):
            if delta.tokens:
                self.times.append(time.monotonic())


def measured(settings: dict[str, Any], arguments: argparse.Namespace) -> tuple[list[float], list[float]]:
    """(gaps between tokens of those that decode, time to the first token of long prompts), seconds, ascending."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        config = build_config(
            {"model": arguments.model, "trace_dir": folder, "log_level": "error", "runtime": arguments.runtime}
            | (OF_A_GHOST if arguments.model == "ghost" else OF_OTHERS)
            | ({} if arguments.chunk is None else {"prefill_chunk": arguments.chunk})
            | {"host_cache_gb": 0.5}
            | settings
        )
        times = Times(arguments.step_ms / 1e3, arguments.token_us / 1e6)
        with modelled(config, times) if config.model == "ghost" else Engine(config) as engine:
            prompts = [rng.integers(97, 122, 8).tolist() for _ in range(arguments.clients)]
            short = [Client(engine, prompt, arguments.tokens) for prompt in prompts]
            for client in short:
                client.start()
            time.sleep(SETTLE_S[arguments.runtime])
            prompts = [rng.integers(97, 122, arguments.prompt).tolist() for _ in range(arguments.prompts)]
            long = [Client(engine, prompt, 1) for prompt in prompts]
            for client in long:
                client.start()
                time.sleep(arguments.every_s)
            for client in (*short, *long):
                client.join()
    since = min(client.began for client in long)
    gaps = [b - a for client in short for a, b in zip(client.times, client.times[1:], strict=False) if b > since]
    return sorted(gaps), sorted(client.times[0] - client.began for client in long)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ghost")
    parser.add_argument("--runtime", choices=tuple(SETTLE_S), default="local")
    parser.add_argument("--clients", type=int, default=16, help="that decode all the time")
    parser.add_argument("--tokens", type=int, default=600, help="of each of them")
    parser.add_argument("--prompt", type=int, default=8000, help="tokens of a long prompt")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--every-s", type=float, default=0.7)
    parser.add_argument("--chunk", type=int, help="otherwise 2048 with a ghost")
    parser.add_argument("--step-ms", type=float, default=8.0)
    parser.add_argument("--token-us", type=float, default=50.0, help="of a prompt token")
    parser.add_argument("--replica", nargs=2, type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replica:
        be_replica(Times(*arguments.replica))
        return
    print(f"{'':14} gap p50     p99     max ms    first token of a long prompt p50     max ms")
    for name, settings in SERVERS.items():
        gaps, firsts = measured(settings, arguments)
        at = {share: gaps[int(share * (len(gaps) - 1))] * 1e3 for share in (0.5, 0.99, 1.0)}
        first = [firsts[len(firsts) // 2] * 1e3, firsts[-1] * 1e3]
        told = "".join(f"{value:8.1f}" for value in at.values())
        print(f"{name:14}{told}    {first[0]:33.0f}{first[1]:8.0f}", flush=True)


if __name__ == "__main__":
    main()
