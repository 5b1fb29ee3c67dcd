"""What it costs to share a step of the compiled CPU kernels out: SmolLM2-135M in bfloat16, ranks of one thread each,
beside one rank with as many threads.

    python -m benchmarks.native_ranks [ranks]

Both take turns. The smallest figure of the range is the one to compare on a machine that others use; ranks suffer most
there, for a step is as slow as the slowest of them. The last line is one meeting of all ranks.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from benchmarks.harness import Result, Spread, table, write_json
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
ROUNDS = 5
REPETITIONS = {"decode": 24, "prefill": 2, "meeting": 3}
"""Of a round."""
MEETING_TARGET_US = 5.0
_DEADLINE_S = 600.0


def serve(pipe: Connection, address: Address | None, number: int, threads: int) -> None:
    """The process of one rank, or of all of the model: milliseconds of every step that is asked for, or microseconds of
    a meeting, and the milliseconds of processor time of each."""
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
    gc.collect()
    gc.disable()
    pipe.send(None)
    while (name := pipe.recv()) is not None:
        joined = None if rank is None else rank.joined
        found, processor = list[float](), list[float]()
        for _ in range(REPETITIONS[name.split(",")[0]] + 1):
            if joined is not None:
                joined.meet()
            start, began = time.perf_counter_ns(), time.process_time()
            if name in steps:
                backend.forward_greedy(steps[name])
            elif joined is not None:
                joined.meet(MEETINGS)
            found.append((time.perf_counter_ns() - start) / (1e6 if name in steps else 1e3 * MEETINGS))
            processor.append((time.process_time() - began) * 1e3)
        pipe.send((found[1:], processor[1:]))


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    processes: list[BaseProcess]
    pipes: list[Connection]

    def measure(self, name: str) -> tuple[list[float], list[float]]:
        """The slowest rank's time of each repetition, and the processor time of all of them together."""
        for pipe in self.pipes:
            pipe.send(name)
        told = [pipe.recv() for pipe in self.pipes]
        times = [max(each) for each in zip(*(found for found, _ in told), strict=True)]
        return times, [sum(each) for each in zip(*(processor for _, processor in told), strict=True)]

    def end(self) -> None:
        """Ends its processes."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


def in_turns(sides: Sequence[Side], name: str) -> list[tuple[Spread, Spread]]:
    """Of each side: what `Side.measure` says over all rounds."""
    told = [[side.measure(name) for side in sides] for _ in range(ROUNDS)]
    found = []
    for rounds in zip(*told, strict=True):
        times, processor = (Spread.of(list(chain.from_iterable(parts))) for parts in zip(*rounds, strict=True))
        found.append((times, processor))
    return found


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
    results, processor = list[Result](), list[Result]()
    for name in batches():
        (ours, our_processor), (theirs, their_processor) = in_turns((shared, alone), name)
        results.append(Result(name, ours, "ms", "one rank", theirs))
        processor.append(Result(f"{name}, processor time", our_processor, "ms", "one rank", their_processor))
    ((meeting, _),) = in_turns((shared,), "meeting")
    for side in (shared, alone):
        side.end()
    results.extend(processor)
    results.append(Result("meeting", meeting, "us", target=MEETING_TARGET_US))
    title = f"{ranks} ranks of one thread and one rank of {ranks}, SmolLM2-135M, bfloat16, context {CONTEXT}"
    print(table(f"{title}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", results))
    print(f"written to {write_json(results, 'bench-native-ranks.json')}")


if __name__ == "__main__":
    main()
