"""`pawl top`: watch a running server in the terminal, and steer it with keys.

Where the output is no terminal, and with `--once`, it is said once: 0, or 1 when the server does not answer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time

from pawl.commands.failures import CommandFailed, UsageError
from pawl.commands.numbers import finite
from pawl.commands.remote import DEFAULT_URL, KEYS, key_from
from pawl.top.live import run as run_live
from pawl.top.live import time_of_day
from pawl.top.reading import Lost, Reading, Source, Watched
from pawl.top.terminal import Terminal
from pawl.top.text import paint
from pawl.top.view import snapshot

LEAST_INTERVAL_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the server is, and how it is to be shown."""
    parser.add_argument("--url", default=DEFAULT_URL, help="of the server (default: %(default)s)")
    parser.add_argument("--api-key", metavar="KEY", help=f"(default: what {' or '.join(KEYS)} holds)")
    parser.add_argument(
        "--admin-api-key", metavar="KEY", help="to list requests and to steer, where the server has one"
    )
    parser.add_argument("--interval", type=finite, default=1.0, metavar="S", help="seconds between looks (default: 1)")
    parser.add_argument("--once", action="store_true", help="two looks, then say what there is as plain text, and end")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Watch until somebody quits, or look once."""
    if not arguments.interval >= LEAST_INTERVAL_S:
        raise UsageError(f"--interval is {LEAST_INTERVAL_S} seconds or more")
    source = Source(arguments.url, arguments.admin_api_key or key_from(arguments.api_key))
    seen = arguments.once or arguments.json or not (sys.stdin.isatty() and sys.stdout.isatty())
    if not seen:
        terminal = Terminal(sys.stdin.fileno(), sys.stdout.fileno(), os.environ)
        return run_live(source, arguments.url, terminal, arguments.interval)
    watched = _two_looks(source, arguments.url, arguments.interval)
    if arguments.json:
        print(json.dumps(_plain(watched), indent=2))  # in ASCII, so that no name in it moves a terminal
        return 0
    width = shutil.get_terminal_size((100, 0)).columns
    for line in snapshot(watched, width, time_of_day()):
        print(paint(line, colour=False))
    return 0


def _two_looks(source: Source, url: str, interval_s: float) -> Watched:
    """Between which there are rates. Raises CommandFailed when the server does not answer."""
    watched = Watched(url)
    for number in range(2):
        if number:
            time.sleep(interval_s)
        look = source.look(time.monotonic(), time_of_day())
        if isinstance(look, Lost):
            raise CommandFailed(f"{url}: {look.why}")
        watched.add(look)
    return watched


RATES = {
    "computed_tokens": ("steps", "prefill_tokens"),
    "cached_tokens": ("counters", "cached_tokens"),
    "generated_tokens": ("counters", "generated_tokens"),
    "steps": ("counters", "steps"),
}


def _plain(watched: Watched) -> dict[str, object]:
    """For programs: what the server says, and rates by the second."""
    reading = watched.last
    assert isinstance(reading, Reading)
    rates = {name: watched.rate(*path) for name, path in RATES.items()}
    return {
        "url": watched.url,
        "rates": rates,
        "health": reading.health,
        "server": reading.server,
        "scheduler": reading.state,
    }
