"""From `pawl serve` to the first token, and the memory of a server after many requests.

    python -m benchmarks.start [CHECKOUT ...] [--rounds 5] [--requests 100]

Of several checkouts in turns. Processor time is that of the server alone: beside other programs only that can be
compared.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.machine import cpu_seconds, resident
from benchmarks.pressure import free_port

POLL_S = 0.01
LIMIT_S = 300.0


class Start(NamedTuple):
    """One server."""

    wall_s: float
    """Until the first token."""
    cpu_s: float
    """Of the server and its threads, until then."""
    resident_mib: int
    """After all requests."""
    peak_mib: int


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path(__file__).parents[1]])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100)
    asked = parser.parse_args()
    found: dict[Path, list[Start]] = {checkout: [] for checkout in asked.checkouts}
    for _ in range(asked.rounds):
        for checkout, starts in found.items():
            starts.append(started(checkout, asked.requests))
    print("| checkout | first token, s: least, median | processor time, s | resident, MiB | peak, MiB |")
    print("| --- | --- | --- | --- | --- |")
    for checkout, starts in found.items():
        wall, cpu, resident, peak = zip(*starts, strict=True)
        print(
            f"| {checkout} | {min(wall):.2f}, {median(wall):.2f} | {min(cpu):.2f}, {median(cpu):.2f} "
            f"| {median(resident)} | {median(peak)} |"
        )


def started(checkout: Path, num_requests: int) -> Start:
    """Start a server of this checkout, and ask it; half of the requests are greedy, half are drawn."""
    port, began = free_port(), time.monotonic()
    command = [sys.executable, "-m", "pawl.cli", "serve", "smollm2", "--port", str(port), "--no-trace"]
    with subprocess.Popen(command, cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while not _answered(port, "Hello", max_tokens=1, temperature=0):
                if server.poll() is not None or time.monotonic() - began > LIMIT_S:
                    sys.exit(f"the server of {checkout} does not start")
                time.sleep(POLL_S)
            wall, cpu = time.monotonic() - began, cpu_seconds([server.pid])
            for number in range(num_requests):
                _answered(port, f"Tell me about {number}", max_tokens=16, temperature=number % 2)
            return Start(wall, cpu, *map(int, resident(server.pid)))
        finally:
            server.terminate()


def _answered(port: int, prompt: str, **fields: object) -> bool:
    """Whether the server has answered; not yet where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        body = json.dumps({"prompt": prompt, **fields})
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status == 200
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main()
