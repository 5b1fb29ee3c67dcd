"""A second host for tests: a network namespace, joined to that of the tests by a cable that can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent.parent


class SecondHost(NamedTuple):
    """Named so by `ip netns`."""

    name: str
    head: str
    """Where the tests listen."""
    address: str
    """Of the second host."""

    def cable(self, state: str) -> None:
        """`up`, or `down`: a partition."""
        run("ip", "-n", self.name, "link", "set", "node", state)

    def start(self, *words: str, **options: object) -> subprocess.Popen[bytes]:
        """A command of Pawl on this host."""
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "pawl.cli", *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **options)  # type: ignore[call-overload,no-any-return]


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def second_host() -> Iterator[SecondHost]:
    """Skips where there can be none."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("a second host is a network namespace, which takes `ip` and root")
    pid = os.getpid()
    net = f"10.{200 + pid // 256 % 50}.{pid % 256}"
    host = SecondHost(f"pawl-{pid}", f"{net}.1", f"{net}.2")
    try:
        run("ip", "netns", "add", host.name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
    try:
        run("ip", "link", "add", f"p{pid}", "type", "veth", "peer", "name", "node", "netns", host.name)
        run("ip", "addr", "add", f"{host.head}/30", "dev", f"p{pid}")
        run("ip", "link", "set", f"p{pid}", "up")
        run("ip", "-n", host.name, "addr", "add", f"{host.address}/30", "dev", "node")
        run("ip", "-n", host.name, "link", "set", "lo", "up")
        host.cable("up")
        yield host
    finally:
        run("ip", "netns", "delete", host.name)
