"""What it costs to share a step of the compiled CPU kernels out: SmolLM2-135M in bfloat16, one rank with as many threads
as there are ranks, beside ranks of one thread each.

    python -m benchmarks.native_ranks [ranks]

Both take turns, batch by batch. The smallest figure of the range is the one to compare on a machine that others use;
ranks suffer most there, for a step is as slow as the slowest of them. The last line is one meeting of all ranks.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from benchmarks.harness import Result, Spread, quiet, table, write_json
from benchmarks.native import CONTEXT, PAGE_SIZE, PAGES_PER_SLOT, SLOTS, batches
from pawl.gpu.kv import KvStore
from pawl.gpu.native.backend import NativeBackend
from pawl.gpu.native.ranks import Address, Joined, Segment
from pawl.gpu.parallel.communicator import ALONE
from pawl.gpu.parallel.rank import Rank
from pawl.gpu.parallel.shard import Shard, keeper
from pawl.gpu.parallel.topology import Topology
from pawl.gpu.weights.fingerprint import Samples
from pawl.gpu.weights.source import load_weights, resolve_source

MEETINGS = 20_000
REPETITIONS = {"decode": 30, "prefill": 5, "meeting": 7}
MEETING_TARGET_US = 5.0
_DEADLINE_S = 600.0


def serve(pipe: Connection, address: Address | None, number: int, threads: int) -> None:
    """The process of one rank, or of all of the model: milliseconds of every step that is asked for, or microseconds of
    a meeting, and the seconds of processor time that all of them took."""
    source = resolve_source("smollm2")
    rank = shard = None
    if address is not None:
        shard = Shard(source.config, Topology(tensor=address.ranks), number, gathers=True)
        rank = Rank(shard, ALONE, Joined(address, number, _DEADLINE_S))
    config = source.config if shard is None else shard.config
    kinds: Any = {"dtype": torch.bfloat16, "device": "cpu"}
    kv = KvStore(config, num_pages=SLOTS * PAGES_PER_SLOT, page_size=PAGE_SIZE, **kinds)
    weights = load_weights(source, torch.bfloat16, keep=keeper(shard, Samples()))
    backend = NativeBackend(config, weights, kv, threads=threads, rank=rank)
    steps = batches()
    pipe.send(None)
    while (name := pipe.recv()) is not None:
        joined = None if rank is None else rank.joined
        found, cpu = [], 0.0
        for _ in range(REPETITIONS[name.split(",")[0]] + 1):
            if joined is not None:
                joined.meet()
            with quiet():
                start, began = time.perf_counter_ns(), time.process_time()
                if name in steps:
                    backend.forward_greedy(steps[name])
                elif joined is not None:
                    joined.meet(MEETINGS)
                found.append((time.perf_counter_ns() - start) / (1e6 if name in steps else 1e3 * MEETINGS))
                cpu += time.process_time() - began
        pipe.send((found[1:], cpu))


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    processes: list[BaseProcess]
    pipes: list[Connection]

    def measure(self, name: str) -> tuple[Spread, float]:
        """The slowest rank's time of each repetition, and the processor time of all of them for one, milliseconds."""
        for pipe in self.pipes:
            pipe.send(name)
        told = [pipe.recv() for pipe in self.pipes]
        times = [max(each) for each in zip(*(found for found, _ in told), strict=True)]
        return Spread.of(times), sum(cpu for _, cpu in told) * 1e3 / (len(times) + 1)

    def end(self) -> None:
        """Ends its processes."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


def start(segment: Segment | None, ranks: int, threads: int) -> Side:
    """Processes that are ready to be measured."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(ranks)]
    address = None if segment is None else segment.address
    processes: list[BaseProcess] = []
    for number, (_, theirs) in enumerate(pairs):
        processes.append(context.Process(target=serve, args=(theirs, address, number, threads), daemon=True))
        processes[-1].start()
    for ours, _ in pairs:
        ours.recv()
    return Side(processes, [ours for ours, _ in pairs])


def main() -> None:
    """Measure, print, write."""
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    segment = Segment(ranks, 0)
    shared, alone = start(segment, ranks, 1), start(None, 1, ranks)
    results, processor = [], []
    for name in batches():
        (ours, our_cpu), (theirs, their_cpu) = shared.measure(name), alone.measure(name)
        results.append(Result(name, ours, "ms", "one rank", theirs))
        processor.append(Result(f"{name}, processor time", Spread.of([our_cpu]), "ms", "one rank", Spread.of([their_cpu])))
    meeting, _ = shared.measure("meeting")
    shared.end(), alone.end()
    results.extend(processor)
    results.append(Result("meeting", meeting, "us", target=MEETING_TARGET_US))
    title = f"{ranks} ranks of one thread and one rank of {ranks}, SmolLM2-135M, bfloat16, context {CONTEXT}"
    print(table(f"{title}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", results))
    print(f"written to {write_json(results, 'bench-native-ranks.json')}")


if __name__ == "__main__":
    main()
