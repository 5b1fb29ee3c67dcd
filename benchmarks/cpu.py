"""End to end on this machine's processors: this engine and its peers, loaded side by side, asked the same in turns.

    python -m benchmarks.cpu            everything, with every peer the environment names (docs/performance.md)
    python -m benchmarks.cpu --peers none --repetitions 1 --cases "batch 1" "batch 8"

Each repetition asks every engine once, with prompts nobody has seen, in an order that rotates; so a slow minute of the
machine falls on all of them. `paired` is the median of the ratios within one repetition. An engine is compared with
those whose weights have as many bits while they compute; all of them are loaded, and take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.contestants import Contestant, Entry, Running, Server, entries
from benchmarks.harness import RESULTS, Result, Spread, table, write_json
from benchmarks.machine import Health, Spinner, Watch, num_processors
from pawl.bench.measures import Summary, summarise
from pawl.bench.online import Plan, run_load
from pawl.bench.workload import LOWEST_TOKEN, Workload

VOCABULARY = 49_000
"""Prompts are made of token ids below it: the embedded model has 49,152."""
QUIET_PROCESSORS = 0.92
"""Share of the processors that must answer before something is timed, as long as patience lasts."""
SETTLE_S = 0.3
"""After an engine's turn its threads may spin a little before they sleep; the next one must not pay for that."""
SLOW_START_S = 20.0
"""An engine that takes longer to start is started once only."""


class Case(NamedTuple):
    """One question, asked with new prompts each time."""

    name: str
    num_prompts: int
    shared: int
    """Tokens that all prompts begin with."""
    own: int
    num_output: int
    prefill: bool = False
    """Prompt tokens are counted, not output tokens."""
    target: float | None = None

    @property
    def num_counted(self) -> int:
        return self.num_prompts * (self.shared + self.own if self.prefill else self.num_output)

    @property
    def unit(self) -> str:
        return "prompt tok/s" if self.prefill else "tok/s"

    def prompts(self, seed: int) -> list[list[int]]:
        """The same for every engine, different for each repetition."""
        source = random.Random(f"{self.name} {seed}")

        def draw(count: int) -> list[int]:
            return [source.randrange(LOWEST_TOKEN, VOCABULARY) for _ in range(count)]

        prefix = draw(self.shared)
        return [prefix + draw(self.own) for _ in range(self.num_prompts)]


CASES = (
    Case("batch 1", 1, 0, 128, 128),
    Case("batch 8", 8, 0, 128, 128),
    Case("batch 32", 32, 0, 128, 128),
    Case("32 on a shared prefix", 32, 512, 32, 32),
    Case("prefill", 32, 0, 128, 1, prefill=True, target=1500),
)
LOAD_TOKENS = 64
"""Of each prompt, and of each answer, of the clients over HTTP."""
LOAD_CLIENTS = (16, 64)
THROUGHPUT = "tokens a second"
LOAD_ROUNDS = 4
"""Requests of each client, one after another; with many clients the first of all are read together."""
START_TARGET_S = 2.5
MEMORY_TARGET_MIB = 1200.0


@dataclass(frozen=True)
class CpuResult(Result):
    """A result with the state of the machine while it was measured."""

    paired: Spread | None = None
    """Of the ratios within one repetition (above 1: ahead)."""
    health: Health | None = None
    """The least processors and the most foreign work seen around any of the timed parts."""

    def record(self) -> dict[str, object]:
        paired, health = self.paired, self.health
        return super().record() | {
            "paired_ratio": None if paired is None else [round(value, 3) for value in paired],
            "effective_processors": None if health is None else round(health.processors, 2),
            "foreign_processors": None if health is None else round(health.foreign, 2),
        }


@dataclass
class Series:
    """What one engine did in one case, a value for each repetition."""

    name: str
    values: list[float] = field(default_factory=list)
    health: list[Health] = field(default_factory=list)

    def add(self, value: float, health: Health | None = None) -> None:
        self.values.append(value)
        if health is not None:
            self.health.append(health)


def compared(
    name: str, unit: str, ours: Series, peers: Sequence[Series], **options: float | bool | None
) -> list[Result]:
    """One result for each peer; one without a peer where there is none."""
    spread = Spread.of(ours.values)
    if not peers:
        return [CpuResult(name, spread, unit, health=_worst(ours.health), **options)]  # type: ignore[arg-type]
    results: list[Result] = []
    for peer in peers:
        pairs = list(zip(ours.values, peer.values, strict=False))
        higher = bool(options.get("higher_is_better"))
        paired = Spread.of([a / b if higher else b / a for a, b in pairs])
        health = _worst([*ours.health, *peer.health])
        results.append(
            CpuResult(name, spread, unit, peer.name, Spread.of(peer.values), paired=paired, health=health, **options)  # type: ignore[arg-type]
        )
    return results


def _worst(healths: Sequence[Health]) -> Health | None:
    if not healths:
        return None
    return Health(min(health.processors for health in healths), max(health.foreign for health in healths))


class Bench:
    """The spinning threads, and how long to wait for a quiet moment."""

    def __init__(self, patience_s: float) -> None:
        self.spinner = Spinner()
        self.patience_s = patience_s

    @contextmanager
    def watched(self, running: Running, healths: list[Health]) -> Iterator[None]:
        """Wait for a quiet machine, then take its state around the timed part."""
        time.sleep(SETTLE_S)
        limit = time.monotonic() + self.patience_s
        while self.spinner.effective_processors() < QUIET_PROCESSORS * num_processors() and time.monotonic() < limit:
            time.sleep(0.5)
        watch = Watch(self.spinner, [running.process.pid])
        yield
        healths.append(watch.done())


# ---- questions on a pipe ----


def start_all(found: Sequence[Entry], starts: int, stack: ExitStack) -> tuple[list[Contestant], list[Series]]:
    """Start each engine, quick ones several times; the last start stays."""
    contestants, series = [], []
    for entry in found:
        seconds: list[float] = []
        while True:
            contestant = Contestant(entry)
            seconds.append(contestant.start_s)
            if len(seconds) >= starts or contestant.start_s > SLOW_START_S:
                break
            contestant.close()
        stack.callback(contestant.close)
        contestants.append(contestant)
        series.append(Series(contestant.name, seconds))
        print(f"{contestant.name}: {Spread.of(seconds).median:.1f} s from start to first token", flush=True)
    return contestants, series


def measure(case: Case, contestants: Sequence[Contestant], bench: Bench, repetitions: int) -> list[Series]:
    """Tokens a second of each engine in `case`."""
    series = [Series(contestant.name) for contestant in contestants]
    for contestant in contestants:
        contestant.ask(case.prompts(-1), min(case.num_output, 8))  # caches and clocks warm up on prompts of their own
    agreed = [0] * len(contestants)
    for repetition in range(repetitions):
        prompts = case.prompts(repetition)
        first: dict[int, Sequence[int]] = {}
        for turn in range(len(contestants)):
            index = (turn + repetition) % len(contestants)
            with bench.watched(contestants[index], series[index].health):
                answer = contestants[index].ask(prompts, case.num_output)
            series[index].add(case.num_counted / answer.seconds)
            first[index] = answer.first_tokens
        for index, tokens in first.items():
            agreed[index] += sum(a == b for a, b in zip(tokens, first[0], strict=True))
    for index, one in enumerate(series):
        share = agreed[index] / (repetitions * case.num_prompts)
        spread = Spread.of(one.values)
        same = f", {share:.0%} of first tokens as ours" if index else ""
        print(f"{case.name}: {one.name} {spread.median:.1f} {case.unit} ({spread.low:.1f} - {spread.high:.1f}){same}")
    return series


def questions(found: Sequence[Entry], cases: Sequence[Case], bench: Bench, repetitions: int) -> list[Result]:
    """Start, throughput and memory, asked on a pipe."""
    results: list[Result] = []
    with ExitStack() as stack:
        contestants, starts = start_all(found, min(3, repetitions), stack)
        results += by_weights(found, "start to first token", "s", starts, target=START_TARGET_S)
        for case in cases:
            series = measure(case, contestants, bench, repetitions)
            results += by_weights(found, case.name, case.unit, series, target=case.target, higher_is_better=True)
        memory = [Series(one.name, [one.peak_memory() / 2**20]) for one in contestants]
        results += by_weights(found, "peak memory", "MiB", memory, target=MEMORY_TARGET_MIB)
    return results


def by_weights(
    found: Sequence[Entry], name: str, unit: str, series: Sequence[Series], **options: float | bool | None
) -> list[Result]:
    """Results of each kind of weights by itself; in `found`, and so in `series`, this engine is the first of each."""
    results: list[Result] = []
    for weights in dict.fromkeys(entry.weights for entry in found):
        ours, *peers = (one for entry, one in zip(found, series, strict=True) if entry.weights == weights)
        results += compared(f"{name}, {weights}", unit, ours, peers, **options)
    return results


# ---- HTTP ----


def load_round(server: Server, clients: int, seed: int) -> Summary:
    """One closed loop of streamed completions. Raises RuntimeError when a request failed."""
    workload = Workload(
        num_prompts=clients * LOAD_ROUNDS, input_length=LOAD_TOKENS, output_length=LOAD_TOKENS, seed=seed
    )
    plan = Plan(url=server.url, concurrency=clients, vocabulary_size=VOCABULARY)
    summary = summarise(*asyncio.run(run_load(plan, workload, lambda _: None)))
    expected = workload.num_prompts * LOAD_TOKENS
    if summary.num_failed or summary.output_tokens != expected:
        raise RuntimeError(f"{server.entry.key}: {summary.output_tokens} of {expected} tokens, {summary.errors}")
    return summary


def http_figures(summary: Summary) -> dict[str, float]:
    """What is compared: tokens a second, and milliseconds."""
    first, gap = summary.time_to_first_token_ms, summary.inter_token_latency_ms
    assert first is not None
    assert gap is not None
    return {
        THROUGHPUT: summary.output_tokens_per_s,
        "first token p50": first.p50,
        "first token p99": first.p99,
        "gap p50": gap.p50,
        "gap p99": gap.p99,
    }


def over_http(found: Sequence[Entry], bench: Bench, clients: Sequence[int], repetitions: int) -> list[Result]:
    """Closed loops over HTTP, the same load generator for all."""
    results: list[Result] = []
    with ExitStack() as stack:
        servers = []
        for entry in found:
            servers.append(Server(entry))
            stack.callback(servers[-1].close)
        for number in clients:
            series: dict[str, list[Series]] = {}
            for server in servers:
                load_round(server, number, -1)
            for repetition in range(repetitions):
                for turn in range(len(servers)):
                    index = (turn + repetition) % len(servers)
                    healths: list[Health] = []
                    with bench.watched(servers[index], healths):
                        summary = load_round(servers[index], number, repetition)
                    for figure, value in http_figures(summary).items():
                        named = series.setdefault(figure, [Series(entry.key) for entry in found])
                        named[index].add(value, healths[0])
            for figure, of_all in series.items():
                higher = figure == THROUGHPUT
                name, unit = f"HTTP, {number} clients, {figure}", "tok/s" if higher else "ms"
                results += by_weights(found, name, unit, of_all, higher_is_better=higher)
    return results


def main() -> None:
    """Measure, print the table, write the file."""
    arguments = _arguments()
    found = [
        entry
        for entry in entries(arguments.backend)
        if entry.key == "pawl" or arguments.peers is None or entry.key in arguments.peers
    ]
    bench = Bench(arguments.patience)
    cases = [case for case in CASES if arguments.cases is None or case.name in arguments.cases]
    results = questions(found, cases, bench, arguments.repetitions)
    if arguments.http:
        served = [entry for entry in found if entry.server is not None]
        results += over_http(served, bench, arguments.clients, arguments.repetitions)
    print(table("End to end on the CPU", results))
    print(f"written to {write_json(results, arguments.output)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="of each case (default: 5)")
    parser.add_argument("--cases", nargs="*", choices=[case.name for case in CASES], help="only these on the pipe")
    parser.add_argument("--http", action=argparse.BooleanOptionalAction, default=True, help="measure the servers too")
    parser.add_argument("--clients", nargs="*", type=int, default=list(LOAD_CLIENTS), metavar="N", help="of HTTP")
    parser.add_argument(
        "--peers", nargs="*", metavar="NAME", help="only these: vllm, transformers, llama, openvino; or none"
    )
    parser.add_argument("--backend", default="auto", help="of this engine (default: auto)")
    parser.add_argument("--patience", type=float, default=15.0, metavar="S", help="wait so long for a quiet machine")
    parser.add_argument("--output", default="bench-cpu.json", metavar="FILE", help=f"in {RESULTS.name}/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
