"""More hosts on this machine: network namespaces, each joined to that of this process by a cable that can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
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

    def start(self, *words: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """A command of Pawl on this host, with these variables as well."""
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "pawl.cli", *words]
        every = os.environ | {"PYTHONPATH": str(ROOT)} | dict(env or {})
        return subprocess.Popen(command, cwd=ROOT, env=every, **options)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def second_host() -> Iterator[SecondHost]:
    """Raises NoSecondHost."""
    with more_hosts(1) as (host,):
        yield host


@contextmanager
def more_hosts(count: int) -> Iterator[list[SecondHost]]:
    """So many, which also reach each other. Raises NoSecondHost."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        raise NoSecondHost("a second host is a network namespace, which takes `ip` and root")
    pid = os.getpid()
    net, switch = f"10.{200 + pid // 256 % 50}.{pid % 256}", f"p{pid}"
    hosts = [SecondHost(f"pawl-{pid}-{number}", f"{net}.1", f"{net}.{number}") for number in range(2, 2 + count)]
    try:
        for host in hosts:
            _run("ip", "netns", "add", host.name)
    except subprocess.CalledProcessError as error:
        raise NoSecondHost(f"no network namespace can be made: {error.stderr.decode().strip()}") from error
    try:
        _run("ip", "link", "add", switch, "type", "bridge")
        _run("ip", "addr", "add", f"{net}.1/24", "dev", switch)
        _run("ip", "link", "set", switch, "up")
        for number, host in enumerate(hosts):
            port = f"{switch}-{number}"
            _run("ip", "link", "add", port, "type", "veth", "peer", "name", "node", "netns", host.name)
            _run("ip", "link", "set", port, "master", switch, "up")
            _run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", "node")
            _run("ip", "-n", host.name, "link", "set", "lo", "up")
            host.cable("up")
        yield hosts
    except subprocess.CalledProcessError as error:
        raise NoSecondHost(f"no cable can be laid: {error.stderr.decode().strip()}") from error
    finally:
        for host in hosts:
            _run("ip", "netns", "delete", host.name)
        subprocess.run(("ip", "link", "delete", switch), check=False, capture_output=True)
