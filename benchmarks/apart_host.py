"""What a step costs where the replica is a process of its own, beside the same in threads of one process.

    python -m benchmarks.apart_host [--rows 256] [--tokens 200] [--rounds 5]

The model is a ghost, whose steps take next to no time: what is left is the host. All rows decode at once, in both by
turns. A step is the time of the answers, their prompts included, over their length; processor time is of all processes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

from benchmarks.harness import Result, Spread, table, write_json
from benchmarks.machine import cpu_seconds, tree
from pawl.config import build_config
from pawl.engine import Engine

SETTINGS = {"threads": {}, "processes": {"runtime": "processes"}}
PAGE = 16
PROMPT = 8


def timed(engine: Engine, rows: int, tokens: int) -> tuple[float, float]:
    """Wall and processor time, microseconds of a step in which each row gets a token."""
    sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0.0}
    prompts = [[97 + row % 100, *range(97, 96 + PROMPT)] for row in range(rows)]
    began, used = time.perf_counter(), cpu_seconds(tree(os.getpid()))
    engine.generate(prompts, sampling)
    wall, cpu = time.perf_counter() - began, cpu_seconds(tree(os.getpid())) - used
    return wall * 1e6 / tokens, cpu * 1e6 / tokens


def measured(kind: str, rows: int, tokens: int) -> tuple[float, float]:
    """One turn, of an engine of its own, that has answered before."""
    with tempfile.TemporaryDirectory() as folder:
        room = rows * (PROMPT + tokens + PAGE)
        settings = {"max_running": rows, "max_queued": 4 * rows, "kv_tokens": room - room % PAGE, "log_level": "error"}
        config = build_config({"model": "ghost", "trace_dir": folder, **settings, **SETTINGS[kind]})
        with Engine(config) as engine:
            timed(engine, rows, tokens // 4)
            return timed(engine, rows, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    seen: dict[str, list[tuple[float, float]]] = {kind: [] for kind in SETTINGS}
    for _ in range(arguments.rounds):
        for kind, values in seen.items():
            values.append(measured(kind, arguments.rows, arguments.tokens))
    results = []
    for place, name in enumerate(("wall", "processor time")):
        ours, theirs = (Spread.of([value[place] for value in seen[kind]]) for kind in ("processes", "threads"))
        results.append(Result(f"a step of {arguments.rows} rows, {name}", ours, "us", "threads", theirs))
    print(table("A replica in a process of its own", results))
    print(f"written to {write_json(results, 'bench-apart-host.json')}")


if __name__ == "__main__":
    main()
