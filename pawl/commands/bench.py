"""`pawl bench offline|online`: how fast an engine is, and how long its clients wait."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from pawl.bench.routes import PATHS
from pawl.bench.workload import Workload
from pawl.commands.failures import CommandFailed, UsageError
from pawl.commands.numbers import finite
from pawl.commands.settings import SERVER_ONLY, SHOWN_FOR_LOAD, prepared, running_engine
from pawl.flags import add_flags

if TYPE_CHECKING:
    from pawl.bench.measures import Sample, Summary
    from pawl.bench.online import Plan

TABLE_WIDTH = 100
"""Columns that the tables take."""
MOST_PROMPTS = 1_000_000
MOST_TOKENS = 50_000_000
"""Of all prompts together: two gigabytes while they are made."""
MOST_OF_ONE = (1 << 31) - 1
"""What an engine may be asked for, and a token id be."""

Run: TypeAlias = "Callable[[Callable[[int], None]], tuple[list[Sample], float]]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two kinds, each with its own flags."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="offline|online")
    offline = kinds.add_parser("offline", help="throughput of an engine inside this process")
    _add_workload(offline)
    add_flags(offline, without=SERVER_ONLY, shown=SHOWN_FOR_LOAD)
    online = kinds.add_parser(
        "online", help="latency and throughput of a running server, any OpenAI-compatible one too"
    )
    _add_workload(online)
    load = online.add_argument_group("load", "what is asked, and how often")
    load.add_argument("--url", default="http://127.0.0.1:30000", help="base of the server (default: %(default)s)")
    load.add_argument("--route", choices=PATHS, default="completions", help="(default: %(default)s)")
    load.add_argument("--model", metavar="NAME", help="otherwise what the server lists first")
    load.add_argument("--api-key", metavar="TEXT", help="sent as a bearer token")
    pace = load.add_mutually_exclusive_group()
    pace.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests open at once (default: 16)")
    pace.add_argument(
        "--rate", type=finite, metavar="X", help="requests a second, at Poisson times, however many are open"
    )
    load.add_argument(
        "--vocabulary-size", type=int, default=30_000, metavar="N", help="token ids stay below it (default: 30000)"
    )
    load.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="always the full output length; not every server knows it (default: on)",
    )
    load.add_argument("--time-limit-s", type=finite, default=300.0, metavar="X", help="end the run then (default: 300)")


def _add_workload(parser: argparse.ArgumentParser) -> None:
    section = parser.add_argument_group("workload", "the prompts; the same seed makes the same ones")
    defaults = {
        "--num-prompts": (32, "requests"),
        "--input-length": (128, "tokens of each prompt"),
        "--output-length": (128, "output tokens of each request"),
        "--shared-prefix": (0, "tokens that all prompts begin with"),
        "--workload-seed": (0, "of the prompts"),
    }
    for flag, (default, text) in defaults.items():
        section.add_argument(flag, type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    section.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, write the file; 1 when a request failed."""
    workload = workload_of(arguments)
    if arguments.json and (arguments.json.is_dir() or not os.access(arguments.json.parent, os.W_OK)):
        raise UsageError(f"--json: nothing can be saved as {arguments.json}")
    summary, settings = (_offline if arguments.kind == "offline" else _online)(arguments, workload)
    _print(summary)
    if arguments.json:
        from pawl.bench.measures import record

        settings |= {"workload": workload}
        arguments.json.write_bytes(record(arguments.kind, settings, summary) + b"\n")
    return 1 if summary.num_failed else 0


def workload_of(arguments: argparse.Namespace) -> Workload:
    """The workload of this command line. Raises UsageError for one that cannot be."""
    workload = Workload(
        num_prompts=arguments.num_prompts,
        input_length=arguments.input_length,
        output_length=arguments.output_length,
        shared_prefix=arguments.shared_prefix,
        seed=arguments.workload_seed,
    )
    if min(workload.num_prompts, workload.input_length, workload.output_length) < 1:
        raise UsageError("--num-prompts, --input-length and --output-length must be 1 or more")
    if workload.num_prompts > MOST_PROMPTS or workload.num_prompts * workload.input_length > MOST_TOKENS:
        text = f"--num-prompts may be {MOST_PROMPTS:,} at the most, and --input-length times as many {MOST_TOKENS:,}"
        raise UsageError(f"{text}: all prompts are made first, and held")
    if workload.output_length > MOST_OF_ONE:
        raise UsageError(f"--output-length may be {MOST_OF_ONE:,} at the most")
    if not 0 <= workload.shared_prefix <= workload.input_length:
        raise UsageError(f"--shared-prefix must lie between 0 and --input-length ({workload.input_length})")
    return workload


def _offline(arguments: argparse.Namespace, workload: Workload) -> tuple[Summary, dict[str, Any]]:
    from pawl.bench.offline import run_batch

    config = prepared(arguments, quiet=True)
    with running_engine(config) as engine:
        return _measured(workload, lambda advance: run_batch(engine, workload, advance)), {"config": config.public()}


def _online(arguments: argparse.Namespace, workload: Workload) -> tuple[Summary, dict[str, Any]]:
    import asyncio

    from pawl.bench.online import run_load

    plan = plan_of(arguments)
    try:
        summary = _measured(workload, lambda advance: asyncio.run(run_load(plan, workload, advance)))
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"no server at {plan.url}: {error}") from error
    settings = msgspec.to_builtins(plan) | ({"key": "***"} if plan.key else {})
    return summary, {"plan": settings}


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The load of this command line. Raises UsageError for one that cannot be."""
    if arguments.concurrency < 1 or arguments.time_limit_s <= 0 or (arguments.rate is not None and arguments.rate <= 0):
        raise UsageError("--concurrency, --rate and --time-limit-s must be above zero")
    if not 2 <= arguments.vocabulary_size <= MOST_OF_ONE:
        raise UsageError(f"--vocabulary-size must be 2 or more, and {MOST_OF_ONE:,} at the most")
    from pawl.bench.online import Plan

    return Plan(
        url=arguments.url,
        route=arguments.route,
        model=arguments.model,
        concurrency=arguments.concurrency,
        rate=arguments.rate,
        vocabulary_size=arguments.vocabulary_size,
        ignore_eos=arguments.ignore_eos,
        time_limit_s=arguments.time_limit_s,
        key=arguments.api_key,
    )


def _measured(workload: Workload, run_once: Run) -> Summary:
    from pawl.bench.measures import summarise
    from pawl.logs import progress

    with progress("requests", workload.num_prompts) as advance:
        samples, seconds = run_once(advance)
    return summarise(samples, seconds)


def _print(summary: Summary) -> None:
    from rich.console import Console

    from pawl.bench.measures import tables

    console = Console()
    # Into a file or a pipe there is no width to fit.
    console.width = max(console.width, TABLE_WIDTH)
    for table in tables(summary):
        console.print(table)
    for error, count in summary.errors.items():
        console.print(f"{count} failed: {error}", markup=False)
