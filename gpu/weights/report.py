"""How far loading is, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Report: TypeAlias = Callable[[float], None]
"""Takes the share that is done, 0 to 1."""


def unheard(share: float) -> None:
    """The report that nobody reads."""


def part(report: Report, begin: float, end: float) -> Report:
    """The report of a part of the work, which takes `report` from `begin` to `end`."""
    return lambda share: report(begin + (end - begin) * share)
