"""Addresses of hosts, tcp://HOST:PORT."""

from __future__ import annotations

import socket

EVERY = ("0.0.0.0", "[::]")
"""Hosts that are every interface of one."""


def resolved(address: str) -> str:
    """With the number of its host in place of a name, as it is bound. Raises OSError for a name that nobody knows."""
    host, port = host_and_port(address)
    if host == "*":
        return address_of("0.0.0.0", port)
    try:
        *_, found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise OSError(error.errno, f"{address}: {error.strerror}") from error
    return address_of(str(found[0]), port)


def address_of(host: str, port: int) -> str:
    """Of a host by its name or its number, of which one of IPv6 stands in brackets."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def host_and_port(address: str) -> tuple[str, int]:
    """Of tcp://HOST:PORT. Raises ValueError."""
    kind, _, where = address.partition("://")
    host, _, port = where.rpartition(":")
    if kind != "tcp" or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"tcp://HOST:PORT, not {address!r}")
    return host, int(port)


def at_host_of(address: str, head: str) -> str:
    """This address at the host of `head`: where a node finds a head that listens at every interface, or has a name."""
    return f"tcp://{host_and_port(head)[0]}:{host_and_port(address)[1]}"


def reached(address: str, front: str) -> str:
    """This address, from where the front is found at `front`: whoever waits at every interface is on its host."""
    if host_and_port(address)[0] not in EVERY:
        return address
    return at_host_of(address, front if front.startswith("tcp:") else "tcp://127.0.0.1:0")


def own_address(head: str) -> str:
    """Of this host, as it reaches the head; nothing is sent. Raises OSError."""
    host, port = host_and_port(head)
    family, kind, *_, where = socket.getaddrinfo(host.strip("[]"), port or 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(where)
        return str(probe.getsockname()[0])
