"""Thousands of runs in one process: nothing is logged, and garbage is collected between them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog


@contextmanager
def collected_between_runs() -> Iterator[None]:
    """Keep Python's cycle collector from looking through a run that is under way, again and again: its actors live
    until its end, and are one large cycle then. Each run begins with a collection of those that nobody holds."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def silence() -> Iterator[None]:
    """Drop what is logged: thousands of runs in which actors are made to fail would say nothing a person can read."""

    def drop(logger: Any, name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        raise structlog.DropEvent

    # In place, as loggers that were used before hold on to this list.
    processors = structlog.get_config()["processors"]
    before = list(processors)
    processors[:] = [drop]
    try:
        yield
    finally:
        processors[:] = before
