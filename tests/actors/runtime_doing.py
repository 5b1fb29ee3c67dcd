"""An actor made of one function, and the messages it takes: for tests of the local runtime."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec

from pawl.actors.runtime.actor import Actor

GENEROUS_S = 60.0
"""Longest wait for what must happen; only a hang gets there."""


class Number(msgspec.Struct, frozen=True, tag=True):
    value: int


class Doing(Actor):
    """Calls a function for each message, and one whenever it settles."""

    accepts = Number

    def __init__(self, handle: Callable[[Doing, Any], object], settle: Callable[[], object] = lambda: None) -> None:
        self.handle = handle
        self.settle = settle
        self.was_stopped = threading.Event()
        self.num_settled = 0

    def receive(self, message: Any) -> None:
        self.handle(self, message)

    def settled(self) -> None:
        self.num_settled += 1
        self.settle()

    def stopped(self, reason: str) -> None:
        self.was_stopped.set()


def ignore(actor: Doing, message: Any) -> None:
    pass
