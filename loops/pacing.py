"""How many launched steps may wait for their results when the next one is planned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Pacing(Protocol):
    """`depth` steps may be in flight while another is planned."""

    name: str
    depth: int


class Lockstep:
    """Plan, launch, wait, commit. The simplest cell: nothing is ever in flight while a step is planned."""

    name = "lockstep"
    depth = 0


class Overlap:
    """Step N+1 is planned while step N runs; its input tokens are resolved by the worker. Hides the host's work."""

    name = "overlap"
    depth = 1


PACINGS: Mapping[str, type[Lockstep] | type[Overlap]] = {"lockstep": Lockstep, "overlap": Overlap}
"""By name on the command line."""
