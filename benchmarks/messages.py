"""How long one message takes from an actor to an actor: in one process, and between two of one host.

    python -m benchmarks.messages [--rounds 5000] [--bytes 0]

A ball goes to and fro; a hop is half of a round. With `--bytes` it carries an array of that size. Beside it, in turns,
what two processes need that do nothing but send so many bytes, through a stream socket and through ZeroMQ.
"""

from __future__ import annotations

import argparse
import logging
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from pawl.actors.runtime.actor import Actor
from pawl.actors.runtime.codec import Codec
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import Process, ProcessSystem

TURNS = 5
HEADERS = 80
"""Bytes of a message beside its array."""


class Ball(msgspec.Struct, frozen=True, tag=True):
    """Goes to and fro."""

    content: NDArray[np.uint8]


class Wall(Actor):
    """Sends each ball back."""

    accepts = Ball
    roams = True

    def receive(self, message: Ball) -> None:
        self.context.send("player", message)


class Player(Actor):
    """Sends the ball again for as many rounds as it should, and notes how long each took."""

    accepts = Ball
    roams = True

    def __init__(self, rounds: int) -> None:
        self.left = rounds
        self.seconds: list[float] = []
        self.over = threading.Event()
        self.sent_at = 0.0

    def receive(self, message: Ball) -> None:
        now = time.perf_counter()
        if self.sent_at:
            self.seconds.append(now - self.sent_at)
        if not self.left:
            self.over.set()
            return
        self.left -= 1
        self.sent_at = time.perf_counter()
        self.context.send("wall", message)


def hops(system: LocalSystem, player: Player, num_bytes: int) -> list[float]:
    """Microseconds of each hop, ascending."""
    system.send("player", Ball(np.zeros(num_bytes, np.uint8)))
    player.over.wait()
    return sorted(seconds * 5e5 for seconds in player.seconds[len(player.seconds) // 10 :])


def in_one_process(rounds: int, num_bytes: int) -> list[float]:
    """Between two threads."""
    system, player = LocalSystem(), Player(rounds)
    system.spawn(player, "player")
    system.spawn(Wall(), "wall")
    system.start()
    taken = hops(system, player, num_bytes)
    system.stop()
    return taken


def bare(kind: str) -> Callable[[int, int], list[float]]:
    """Bytes to and fro between two processes without actors, through a "stream" or a pair of "zmq"."""

    def measure(rounds: int, num_bytes: int) -> list[float]:
        ball, seconds = bytes(HEADERS + num_bytes), []
        here, there = socket.socketpair()
        with here, there, tempfile.TemporaryDirectory() as folder:
            address = f"ipc://{folder}/bare"
            words = [sys.executable, "-m", "benchmarks.messages", "--bytes", str(num_bytes), "--echo", kind]
            file = there.fileno()
            with subprocess.Popen([*words, address, str(file)], pass_fds=[file]) as other:
                send, receive = ways_of(kind, address, here, waits=True)
                receive(len(ball))
                for _ in range(rounds):
                    began = time.perf_counter()
                    send(ball)
                    receive(len(ball))
                    seconds.append(time.perf_counter() - began)
                send(bytes(len(ball) - 1) + b"!")
                other.wait()
        return sorted(second * 5e5 for second in seconds[rounds // 10 :])

    return measure


def ways_of(
    kind: str, address: str, stream: socket.socket, *, waits: bool
) -> tuple[Callable[[bytes], Any], Callable[[int], bytes]]:
    """How to send to the other process, and to receive so many bytes."""
    if kind == "stream":
        return stream.sendall, lambda count: stream.recv(count, socket.MSG_WAITALL)
    import zmq

    pair = zmq.Context.instance().socket(zmq.PAIR)
    (pair.bind if waits else pair.connect)(address)
    return pair.send, lambda _: pair.recv()


def echo(kind: str, address: str, stream: socket.socket, size: int) -> None:
    """The other process: says that it is there, and sends back what comes."""
    send, receive = ways_of(kind, address, stream, waits=False)
    ball = bytes(size)
    while not ball.endswith(b"!"):
        send(ball)
        ball = receive(size)


def between_two(rounds: int, num_bytes: int) -> list[float]:
    """Between two processes."""
    met, player = threading.Event(), Player(rounds)
    system = ProcessSystem(Process("here", Codec, on_met=lambda _: met.set()))
    system.spawn(player, "player")
    with tempfile.TemporaryDirectory() as folder:
        sockets, address = Sockets(), f"ipc://{folder}/link"
        system.connect("there", sockets.bind(address))
        system.start()
        words = [sys.executable, "-m", "benchmarks.messages", "--wall", address]
        with subprocess.Popen(words, stdin=subprocess.PIPE) as other:
            met.wait()
            taken = hops(system, player, num_bytes)
            other.communicate(b"")
        system.stop()
        sockets.close()
    return taken


def wall(address: str) -> None:
    """The other process."""
    system, sockets = ProcessSystem(Process("there", Codec)), Sockets()
    system.spawn(Wall(), "wall")
    system.connect("here", sockets.join(address))
    system.start()
    sys.stdin.read()
    system.stop()
    sockets.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="microseconds of one message from actor to actor")
    parser.add_argument("--rounds", type=int, default=5000)
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--wall", help=argparse.SUPPRESS)
    parser.add_argument("--echo", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.wall:
        wall(arguments.wall)
        return
    if arguments.echo:
        kind, address, file = arguments.echo
        echo(kind, address, socket.socket(fileno=int(file)), HEADERS + arguments.bytes)
        return
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    ways = {
        "one process": in_one_process,
        "two processes": between_two,
        "bare stream": bare("stream"),
        "bare ZeroMQ": bare("zmq"),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, measure in ways.items():
            taken[name] += measure(arguments.rounds // TURNS, arguments.bytes)
    floor = float(np.median(taken["bare stream"]))
    for name, hop in taken.items():
        at = "".join(f"  p{share} {np.percentile(hop, share):7.1f} us" for share in (50, 90, 99))
        print(f"{name:14}{at}  {np.median(hop) / floor:5.1f} x bare stream", flush=True)


if __name__ == "__main__":
    main()
