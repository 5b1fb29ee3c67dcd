"""`python -m benchmarks.replicas`: throughput of two replicas behind the router, beside twice that of one.

The model is a ghost whose steps take a fixed time, as on a device: what is measured is what the host adds. Both run in
turns; the best of some rounds counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from typing import Any

from pawl.actors.names import NAMES, names_of
from pawl.build.ghost import load_ghost
from pawl.build.parts import Parts
from pawl.build.replicas import share_of
from pawl.config import build_config
from pawl.engine import Engine


class Steady:
    """A runner whose steps take `step_s` seconds."""

    def __init__(self, runner: Any, step_s: float) -> None:
        self._runner = runner
        self._step_s = step_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def collect(self, launched: Any) -> Any:
        time.sleep(self._step_s)
        return self._runner.collect(launched)


def tokens_per_second(count: int, arguments: argparse.Namespace) -> float:
    """Of `count` replicas, each with its own share of the requests."""
    requests, tokens = count * arguments.requests, arguments.tokens
    with tempfile.TemporaryDirectory() as folder:
        settings = {"max_running": count * arguments.requests, "max_queued": count * 1024, "log_level": "error"}
        config = build_config({"model": "ghost", "dp": count, "trace_dir": folder, **settings})
        parts: list[Parts] = [
            load_ghost(share_of(config, place), names_of(place) if count > 1 else NAMES) for place in range(count)
        ]
        steady = [replace(each, runner=Steady(each.runner, arguments.step_ms / 1e3)) for each in parts]
        with Engine(config, parts=steady) as engine:
            prompts = [list(range(97, 97 + 8)) for _ in range(requests)]
            sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
            engine.generate(prompts[:count], sampling | {"max_new_tokens": 2})
            began = time.monotonic()
            engine.generate(prompts, sampling)
            return requests * tokens / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--requests", type=int, default=64, help="for each replica")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    best = {1: 0.0, 2: 0.0}
    for _ in range(arguments.rounds):
        for count in best:
            best[count] = max(best[count], tokens_per_second(count, arguments))
    print(f"one replica: {best[1]:,.0f} tokens/s; two: {best[2]:,.0f} tokens/s")
    print(f"two are {best[2] / (2 * best[1]):.2f} of twice one")


if __name__ == "__main__":
    main()
