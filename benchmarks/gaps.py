"""What a long prompt makes those wait for who decode: the gaps between their tokens, with it and without.

    python -m benchmarks.gaps [--clients N] [--prompt N] [--max-step-ms MS …]

The scheduler and the model in one thread, and its processor time is the clock of both: other programs disturb that less
than they do a real one. `inf` among the bounds: steps have the whole `prefill_chunk`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import deque
from typing import Any, NamedTuple

import msgspec
import numpy as np

from benchmarks.host import Sink
from pawl.build.assembly import load_parts
from pawl.config import STREAMED_STEP_MS, build_config
from pawl.lifecycle.journal import Journal
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo
from pawl.loops.batch import ScheduledBatch
from pawl.loops.select import LoopConfig, make_loop
from pawl.memory.arrays import Int32s

UNDISTURBED_STEPS = 60


class Gap(NamedTuple):
    """From one token of all clients to the next."""

    seconds: float
    prompts: int


class Server(Sink):
    """A loop and its worker."""

    def __init__(self, config: LoopConfig, runner: Any) -> None:
        super().__init__()
        self.loop = make_loop(config, self, Journal(None))
        self._runner = runner
        self._launched: deque[ScheduledBatch] = deque()
        self._next = 1

    def launch(self, scheduled: ScheduledBatch) -> None:
        self._launched.append(scheduled)

    def submit(self, prompt: Int32s, max_new_tokens: int) -> None:
        sampling = SamplingParameters(temperature=0.0, max_new_tokens=max_new_tokens)
        info, now = RequestInfo(self._next, f"r{self._next}", sampling, "", 0.0), time.process_time()
        self.loop.requests.submit(info, prompt, 0, float("inf"), now)
        self._next += 1

    def step(self) -> ScheduledBatch:
        """The oldest step in flight, and the next ones planned."""
        self.loop.turn(time.process_time())
        scheduled = self._launched.popleft()
        result = self._runner.collect(self._runner.launch(scheduled.batch))
        self.loop.executed(result, time.process_time())
        return scheduled

    def gap(self) -> Gap:
        """One step, in which somebody decodes."""
        began = time.process_time()
        prompts = self.step().num_prompt_tokens
        return Gap(time.process_time() - began, prompts)


def gaps(server: Server, clients: int, prompt: int) -> tuple[list[Gap], list[Gap]]:
    """Of clients that decode: alone, and beside a prompt of so many tokens."""
    source = random.Random(7)

    def drawn(count: int) -> Int32s:
        return np.array([source.randrange(1000, 40_000) for _ in range(count)], np.int32)

    for _ in range(clients):
        server.submit(drawn(128), 4000)
    while server.loop.queues.num_waiting or server.loop.queues.prefilling:
        server.step()
    for _ in range(4):
        server.step()
    alone = [server.gap() for _ in range(UNDISTURBED_STEPS)]
    server.submit(drawn(prompt), 1)
    beside = [server.gap()]
    while server.loop.queues.prefilling or server.loop.queues.num_waiting:
        beside.append(server.gap())
    return alone, beside


def told(name: str, found: list[Gap]) -> str:
    """A line of the table."""
    times = sorted(gap.seconds * 1e3 for gap in found)
    tail, total = times[min(int(len(times) * 0.99), len(times) - 1)], sum(times) / 1e3
    prompts = sum(gap.prompts for gap in found)
    middle, longest = statistics.median(times), times[-1]
    return (
        f"{name:24} {len(times):5} gaps: p50 {middle:6.1f} ms, p99 {tail:6.1f}, longest {longest:6.1f}; "
        f"prompt tokens/s {prompts / total:6.0f}"
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=7900)
    parser.add_argument("--max-step-ms", type=float, nargs="*", default=[float("inf"), STREAMED_STEP_MS])
    arguments = parser.parse_args()
    parts = load_parts(build_config({"trace": False, "threads": 1, "kv_tokens": 32_768, "log_level": "error"}))
    for bound in arguments.max_step_ms:
        config = msgspec.structs.replace(parts.loop_config, max_step_s=None if bound == float("inf") else bound / 1e3)
        parts.runner.reset()
        alone, beside = gaps(Server(config, parts.runner), arguments.clients, arguments.prompt)
        print(told(f"at most {bound:g} ms, alone", alone))
        print(told(f"at most {bound:g} ms, beside", beside), flush=True)


if __name__ == "__main__":
    main()
