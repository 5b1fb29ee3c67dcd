"""A second host on this machine: a network namespace, joined to that of this process by a cable that can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent


class NoSecondHost(Exception):
    """It cannot be made here; the message says why."""


class SecondHost(NamedTuple):
    """Named so by `ip netns`."""

    name: str
    head: str
    """Where this process listens."""
    address: str
    """Of the second host."""

    def cable(self, state: str) -> None:
        """`up`, or `down`: a partition."""
        _run("ip", "-n", self.name, "link", "set", "node", state)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """A command of Pawl on this host."""
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "pawl.cli", *words]
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def second_host() -> Iterator[SecondHost]:
    """Raises NoSecondHost."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        raise NoSecondHost("a second host is a network namespace, which takes `ip` and root")
    pid = os.getpid()
    net = f"10.{200 + pid // 256 % 50}.{pid % 256}"
    host = SecondHost(f"pawl-{pid}", f"{net}.1", f"{net}.2")
    try:
        _run("ip", "netns", "add", host.name)
    except subprocess.CalledProcessError as error:
        raise NoSecondHost(f"no network namespace can be made: {error.stderr.decode().strip()}") from error
    try:
        _run("ip", "link", "add", f"p{pid}", "type", "veth", "peer", "name", "node", "netns", host.name)
        _run("ip", "addr", "add", f"{host.head}/30", "dev", f"p{pid}")
        _run("ip", "link", "set", f"p{pid}", "up")
        _run("ip", "-n", host.name, "addr", "add", f"{host.address}/30", "dev", "node")
        _run("ip", "-n", host.name, "link", "set", "lo", "up")
        host.cable("up")
        yield host
    except subprocess.CalledProcessError as error:
        raise NoSecondHost(f"no cable can be laid: {error.stderr.decode().strip()}") from error
    finally:
        _run("ip", "netns", "delete", host.name)
