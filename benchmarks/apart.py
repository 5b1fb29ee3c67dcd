"""`python -m benchmarks.apart`: long prompts beside decoding clients, with prefill apart and without.

The model is a ghost on modelled devices: a step takes some milliseconds, and more for each prompt token in it. Three
servers in turns: one replica, two of them behind the router, and one that prefills for one that decodes. Told are the
gaps between the tokens of clients that decode all the time, and how long the first token of a long prompt takes.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np

from pawl.actors.names import NAMES, names_of
from pawl.build.ghost import load_ghost
from pawl.build.replicas import share_of
from pawl.build.roles import roles_of
from pawl.config import build_config
from pawl.engine import Engine

SERVERS: dict[str, dict[str, Any]] = {
    "one replica": {},
    "two replicas": {"dp": 2},
    "1p1d": {"disaggregate": "1p1d"},
}


class Modelled:
    """A runner whose steps take `step_s` seconds, and `token_s` more for each prompt token."""

    def __init__(self, runner: Any, step_s: float, token_s: float) -> None:
        self._runner = runner
        self._step_s = step_s
        self._token_s = token_s
        self._prompt_tokens: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def launch(self, batch: Any) -> Any:
        self._prompt_tokens[batch.step] = int(batch.lengths[batch.lengths > 1].sum())
        return batch.step, self._runner.launch(batch)

    def collect(self, launched: Any) -> Any:
        step, inner = launched
        time.sleep(self._step_s + self._token_s * self._prompt_tokens.pop(step, 0))
        return self._runner.collect(inner)


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
            {"model": "ghost", "trace_dir": folder, "log_level": "error", "kv_tokens": 1 << 17, "context_length": 16384}
            | {"prefill_chunk": arguments.chunk, "host_cache_gb": 0.5}
            | settings
        )
        roles = roles_of(config)
        parts = [
            load_ghost(share_of(config, place), names_of(place, role) if len(roles) > 1 else NAMES)
            for place, role in enumerate(roles)
        ]
        times = arguments.step_ms / 1e3, arguments.token_us / 1e6
        with Engine(config, parts=[replace(each, runner=Modelled(each.runner, *times)) for each in parts]) as engine:
            prompts = [rng.integers(97, 122, 8).tolist() for _ in range(arguments.clients)]
            short = [Client(engine, prompt, arguments.tokens) for prompt in prompts]
            for client in short:
                client.start()
            time.sleep(1.0)
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
    parser.add_argument("--clients", type=int, default=16, help="that decode all the time")
    parser.add_argument("--tokens", type=int, default=600, help="of each of them")
    parser.add_argument("--prompt", type=int, default=8000, help="tokens of a long prompt")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--every-s", type=float, default=0.7)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--step-ms", type=float, default=8.0)
    parser.add_argument("--token-us", type=float, default=50.0, help="of a prompt token")
    arguments = parser.parse_args()
    print(f"{'':14} gap p50     p99     max ms    first token of a long prompt p50     max ms")
    for name, settings in SERVERS.items():
        gaps, firsts = measured(settings, arguments)
        at = {share: gaps[int(share * (len(gaps) - 1))] * 1e3 for share in (0.5, 0.99, 1.0)}
        first = [firsts[len(firsts) // 2] * 1e3, firsts[-1] * 1e3]
        told = "".join(f"{value:8.1f}" for value in at.values())
        print(f"{name:14}{told}    {first[0]:33.0f}{first[1]:8.0f}", flush=True)


if __name__ == "__main__":
    main()
