"""How long one message takes from an actor to an actor: in one process, and between two over ipc.

    python -m benchmarks.messages [--rounds 5000] [--bytes 0]

A ball goes to and fro; a hop is half of a round. With `--bytes` it carries an array of that size.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.actors.runtime.actor import Actor
from pawl.actors.runtime.codec import Codec
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import Process, ProcessSystem


class Ball(msgspec.Struct, frozen=True, tag=True):
    """Goes to and fro."""

    content: NDArray[np.uint8]


class Wall(Actor):
    """Sends each ball back."""

    accepts = Ball

    def receive(self, message: Ball) -> None:
        self.context.send("player", message)


class Player(Actor):
    """Sends the ball again for as many rounds as it should, and notes how long each took."""

    accepts = Ball

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
    arguments = parser.parse_args()
    if arguments.wall:
        wall(arguments.wall)
        return
    for name, measure in (("one process", in_one_process), ("two processes", between_two)):
        taken: Any = measure(arguments.rounds, arguments.bytes)
        at = {share: taken[int(share / 100 * (len(taken) - 1))] for share in (50, 90, 99)}
        print(f"{name:14}" + "".join(f"  p{share} {value:7.1f} us" for share, value in at.items()), flush=True)


if __name__ == "__main__":
    main()
