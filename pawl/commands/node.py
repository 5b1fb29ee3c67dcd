"""`pawl node --join tcp://HOST:PORT --keys DIR`: this host computes for a head (`pawl serve --nodes`)."""

from __future__ import annotations

import argparse
from pathlib import Path

from pawl.actors.names import DECODE, PREFILL
from pawl.build.hosts.addresses import host_and_port
from pawl.commands.failures import UsageError
from pawl.commands.numbers import finite
from pawl.config import all_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--join, --keys, --role, and how long to wait; what is served is said by the head."""
    parser.add_argument("--join", required=True, metavar="ADDRESS", help="where the head listens, tcp://HOST:PORT")
    parser.add_argument("--keys", required=True, metavar="DIR", help="folder of the keys that the head has as well")
    parser.add_argument(
        "--role",
        choices=(PREFILL, DECODE),
        help="what this host is for, where prefill and decode are apart (default: what the head misses first)",
    )
    waits = next(setting for setting in all_settings() if setting.name == "node_timeout_s")
    parser.add_argument(
        waits.flag,
        type=finite,
        default=waits.default,
        metavar="X",
        help=f"seconds without an answer of the head after which the node gives up (default: {waits.default:g})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Until the head leaves, or a signal comes: 0."""
    return join(arguments.join, arguments.keys, arguments.node_timeout_s, arguments.role)


def join(address: str, keys: str, timeout_s: float, role: str | None = None, place: int | None = None) -> int:
    """Be a node; `place`: which one, None: any that is missing. Raises UsageError for what is no address, and what
    `serve` of the agent raises."""
    try:
        host_and_port(address)
    except ValueError as error:
        raise UsageError(f"--join: {error}") from error
    from pawl.build.hosts.agent import serve

    return serve(address, Path(keys), timeout_s, place, role)
