"""Every control message: a module a family, a `Row` a message.

A row in a module of this folder is served, checked for its key, offered as `pawl ctl`, recorded, replayed, explored and
documented; there is no list to add it to.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import reduce
from operator import or_
from typing import Any

import msgspec

from pawl.actors.control_row import Row


def _rows() -> tuple[Row, ...]:
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [vars(importlib.import_module(f"{__name__}.{module}")).values() for module in modules]
    return tuple(value for values in found for value in values if isinstance(value, Row))


ROWS: tuple[Row, ...] = _rows()
# Of rows with one message the first is its own; the others have bodies of their own.
_BY_TYPE = {row.message: row for row in reversed(ROWS)} | {row.taken: row for row in ROWS}

Message: Any = reduce(or_, dict.fromkeys(row.message for row in ROWS))
"""The tagged union of what the scheduler gets."""
Body: Any = reduce(or_, dict.fromkeys(row.taken for row in ROWS))
"""The tagged union of what callers send."""


def row_of(message: msgspec.Struct) -> Row:
    """The row of a message, or of a caller's body."""
    return _BY_TYPE[type(message)]


class Ask(msgspec.Struct, frozen=True, tag=True):
    """gateway -> scheduler: a control message whose sender waits for the `Reply` with this ticket."""

    ticket: int
    message: Message
    reply_to: str = "gateway"
