"""Worker <-> stager: experts that move between the ranks that share them out."""

from __future__ import annotations

import msgspec

from pawl.gpu.step_runner import PlannedMove


class BalanceExperts(msgspec.Struct, frozen=True, tag=True):
    """To the stager: lay out what ranks get by a better map."""


class SwitchExperts(msgspec.Struct, frozen=True, tag=True):
    """To the worker: all ranks have what they get; compute by the new map."""

    planned: PlannedMove
    asker: str = ""
    """Who is told what has become of it; empty: nobody has asked."""
    ticket: int = 0
    """Of the asker."""
