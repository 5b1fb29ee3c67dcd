"""What may be set while an engine runs, and its bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

MAX_DELAY_S = 3600.0
"""How long a step may be made to wait."""


class Limits(msgspec.Struct, kw_only=True):
    """What the next step is planned within. The loop reads them at every step."""

    max_running: int
    """Requests computed at the same time. Whoever runs goes on when it is lowered."""
    prefill_chunk: int
    """Prompt tokens computed in one step."""
    max_queued: int
    """Requests that may wait; more are refused. Whoever waits goes on when it is lowered."""
    step_delay_s: float = 0.0
    """How long a step waits once it could be launched; 0: steps are not slowed down."""


SETTABLE = ("max_running", "prefill_chunk", "max_queued")
"""Those that are set together. Slots, graphs and tables are made for what an engine starts with: that is the most."""


def refusals(given: dict[str, Any], start: Limits, page_size: int) -> Iterator[str]:
    """What is wrong with setting these, in words, one for each that is; `start`: what the engine started with."""
    for name, value in given.items():
        least, most = page_size if name == "prefill_chunk" else 1, getattr(start, name)
        if not least <= value <= most:
            yield f"{name} must be from {least} to {most}, which the server started with, not {value}"
