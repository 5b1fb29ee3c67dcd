"""Many clients in simulated time: what steps bounded by time make of first tokens, gaps and throughput.

    python -m benchmarks.crowd [--clients N …] [--max-step-ms MS …] [--chunk N] [--long N] [--model smollm2]

The scheduler that serves, a worker that draws nothing, and a device whose steps take as long as is said. No clock is
read and nothing sleeps: figures are the same each time, on any machine, and show what a setting does before anything
is measured. A closed loop: each client sends its next request when its last one is answered. `inf` among the bounds:
steps have the whole chunk. With `--model` a model computes on one thread, and a step takes its processor time: other
programs disturb that less than they do a real one.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections import deque
from itertools import product
from math import inf
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from benchmarks.harness import aligned, number
from benchmarks.host import Sink
from pawl.build.assembly import load_parts
from pawl.config import STREAMED_STEP_MS, build_config
from pawl.lifecycle.journal import Journal
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.step import StepResult
from pawl.loops.batch import ScheduledBatch
from pawl.loops.effects import Ending
from pawl.loops.select import LoopConfig, make_loop
from pawl.memory.arrays import Int32s

TOKEN = 7
"""That everybody gets."""
CLIENT_S = 0.004
"""From the end of an answer to the next request of its client."""
SHARES = (50, 99)
HEAD = ["tok/s", "first p50", "first p99", "gap p50", "gap p99", "longest", "long prompt"]


class Device(Protocol):
    """Computes steps in a time that it says."""

    def run(self, scheduled: ScheduledBatch) -> tuple[StepResult, float]:
        """What this step gives, and the seconds that it takes."""


class Imagined(NamedTuple):
    """One whose steps take as long as is said. By itself: SmolLM2-135M in bf16 on two cores of an AMD EPYC, about."""

    base_s: float = 0.006
    row_s: float = 0.00085
    """Of each request that decodes."""
    token_s: float = 0.0006
    """Of each prompt token."""
    reach_s: float = 1.5e-7
    """Of each prompt token, for each token before it."""

    def run(self, scheduled: ScheduledBatch) -> tuple[StepResult, float]:
        far = sum(part.length * part.start for part in scheduled.prefills)
        rows, prompts = len(scheduled.decoding_rows), scheduled.num_prompt_tokens
        drawn = np.full(int(scheduled.batch.samples.sum()), TOKEN, np.int32)
        seconds = self.base_s + self.row_s * rows + self.token_s * prompts + self.reach_s * far
        return StepResult(step=scheduled.step, tokens=drawn), seconds


class Thread:
    """A model on one thread of this machine."""

    def __init__(self, model: str, num_tokens: int) -> None:
        """`num_tokens`: that it has room for."""
        settings = {"model": model, "trace": False, "threads": 1, "kv_tokens": num_tokens, "log_level": "error"}
        parts = load_parts(build_config(settings))
        self.config, self._runner = parts.loop_config, parts.runner

    def run(self, scheduled: ScheduledBatch) -> tuple[StepResult, float]:
        began = time.process_time()
        result = self._runner.collect(self._runner.launch(scheduled.batch))
        return result, time.process_time() - began

    def reset(self) -> None:
        """Forget all that was computed."""
        self._runner.reset()


class Load(NamedTuple):
    """What the clients ask for."""

    clients: int
    requests: int
    """Of each client, one after the other."""
    prompt: int
    """Tokens of each prompt."""
    output: int
    """Tokens of each answer, 2 or more."""
    long: int
    """Tokens of one more prompt, sent when half of the others have been answered; 0: there is none."""


class Seen(NamedTuple):
    """What the clients saw, in seconds."""

    firsts: list[float]
    gaps: list[float]
    long: list[float]
    """Until the first token of the long prompt."""
    total: float = 0.0

    def told(self) -> list[str]:
        """A line of the table."""
        firsts, gaps = np.array(self.firsts) * 1e3, np.array(self.gaps) * 1e3
        first, gap = np.percentile(firsts, SHARES), np.percentile(gaps, SHARES)
        tokens_per_s = (len(firsts) + len(gaps)) / self.total
        figures = [tokens_per_s, *first, *gap, gaps.max()]
        long = number(self.long[0] * 1e3) if self.long else ""
        return [*(number(float(value)) for value in figures), long]


class Crowd(Sink):
    """The loop, the device and the clients, and the time they share."""

    def __init__(self, config: LoopConfig, device: Device, load: Load) -> None:
        super().__init__()
        self.loop = make_loop(config, self, Journal(None))
        self._device, self._load = device, load
        self._launched: deque[ScheduledBatch] = deque()
        self._running: StepResult | None = None
        self._random = np.random.default_rng(1)
        self._now, self._done_at = 0.0, inf
        self._arrivals: list[tuple[float, int]] = []
        """When requests come, and the tokens of their prompts."""
        self._sent = 0
        self._last: dict[int, float] = {}
        """Request -> when it was sent, or its last token came."""
        self._request_of: dict[int, int] = {}
        self._long, self._answered = 0, 0
        self.seen = Seen([], [], [])

    # ---- effects ----

    def opened(self, row: int, info: RequestInfo, tokens: Int32s) -> None:
        self._request_of[row] = info.request

    def launch(self, scheduled: ScheduledBatch) -> None:
        self._launched.append(scheduled)

    def output(self, rows: Int32s, tokens: Int32s, scheduled: ScheduledBatch | None, result: StepResult | None) -> None:
        assert scheduled is not None
        fresh = {part.row for part in scheduled.prefills}
        for row in rows.tolist():
            request = self._request_of[row]
            waits = self.seen.firsts if row in fresh else self.seen.gaps
            (self.seen.long if request == self._long else waits).append(self._now - self._last[request])
            self._last[request] = self._now

    def ended(self, ending: Ending) -> None:
        load = self._load
        self._answered += 1
        if self._answered + load.clients <= load.clients * load.requests:
            heapq.heappush(self._arrivals, (self._now + CLIENT_S, load.prompt))
        if load.long and self._answered * 2 == load.clients * load.requests:
            heapq.heappush(self._arrivals, (self._now, load.long))

    # ---- time ----

    def _send(self, at: float, prompt: int) -> None:
        self._sent += 1
        self._last[self._sent] = at - CLIENT_S
        output = self._load.output
        if prompt != self._load.prompt:
            self._long, output = self._sent, 1
        sampling = SamplingParameters(temperature=0.0, max_new_tokens=output)
        info = RequestInfo(self._sent, f"r{self._sent}", sampling, "", at)
        tokens = self._random.integers(300, 40_000, prompt, np.int32)
        self.loop.requests.submit(info, tokens, 0, inf, at)

    def run(self) -> Seen:
        """Until everybody has all answers."""
        self._arrivals = [(0.0, self._load.prompt)] * self._load.clients
        while self._arrivals or self._running:
            self._now = min([self._done_at, *(at for at, _ in self._arrivals[:1])])
            if self._done_at <= self._now:
                assert self._running is not None
                result, self._running, self._done_at = self._running, None, inf
                self.loop.executed(result, self._now)
            while self._arrivals and self._arrivals[0][0] <= self._now:
                self._send(*heapq.heappop(self._arrivals))
            self.loop.turn(self._now)
            if self._running is None and self._launched:
                self._running, seconds = self._device.run(self._launched.popleft())
                self._done_at = self._now + seconds
        return self.seen._replace(total=self._now)


def main() -> None:
    """Simulate, and print."""
    arguments = _arguments()
    costs = arguments.base_ms / 1e3, arguments.row_ms / 1e3, arguments.token_ms / 1e3, arguments.reach_us / 1e6
    each = max(arguments.prompt + arguments.output, arguments.long + 1)
    config = LoopConfig(num_pages=1 << 14, page_size=16, max_context=each)
    device: Imagined | Thread = Imagined(*costs)
    if arguments.model is not None:
        device = Thread(arguments.model, (max(arguments.clients) + 1) * (each + 16))
        config = device.config
    rows = [["clients", "max step", *HEAD]]
    for clients, bound in product(arguments.clients, arguments.max_step_ms):
        within = None if bound == inf else bound / 1e3
        config = msgspec.structs.replace(config, prefill_chunk=arguments.chunk, max_step_s=within)
        if isinstance(device, Thread):
            device.reset()
        load = Load(clients, arguments.requests, arguments.prompt, arguments.output, arguments.long)
        rows.append([str(clients), f"{bound:g}", *Crowd(config, device, load).run().told()])
    print(aligned("Closed loops in simulated time, milliseconds", rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = Imagined()
    parser.add_argument("--clients", type=int, nargs="*", default=[16, 64, 128], metavar="N")
    parser.add_argument("--requests", type=int, default=4, metavar="N", help="of each client (default: 4)")
    parser.add_argument("--prompt", type=int, default=64, metavar="N", help="tokens of each (default: 64)")
    parser.add_argument("--output", type=int, default=64, metavar="N", help="tokens of each answer (default: 64)")
    parser.add_argument("--long", type=int, default=0, metavar="N", help="one more client sends a prompt so long")
    parser.add_argument(
        "--max-step-ms",
        type=float,
        nargs="*",
        default=[STREAMED_STEP_MS],
        metavar="MS",
        help="as of pawl serve",
    )
    parser.add_argument("--chunk", type=int, default=128, metavar="N", help="prompt tokens of a step at the most")
    parser.add_argument("--model", metavar="NAME", help="computes here, on one thread; otherwise steps take:")
    parser.add_argument("--base-ms", type=float, default=device.base_s * 1e3, metavar="MS", help="of every step")
    parser.add_argument("--row-ms", type=float, default=device.row_s * 1e3, metavar="MS", help="of each that decodes")
    parser.add_argument("--token-ms", type=float, default=device.token_s * 1e3, metavar="MS", help="of a prompt token")
    parser.add_argument(
        "--reach-us", type=float, default=device.reach_s * 1e6, metavar="US", help="of a prompt token, each one before"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
