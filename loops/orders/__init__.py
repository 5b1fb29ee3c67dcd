"""Every order that a loop can be given: a module a family.

What is in a module of this folder is known to the scheduler's mailbox and to the reader of a trace; there is no list to
add it to.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import reduce
from operator import or_
from typing import Any

import msgspec

from pawl.loops.intake import Order, WaitEnds


def _orders() -> tuple[type[Order], ...]:
    found: list[type[Order]] = [WaitEnds]
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        named = vars(importlib.import_module(f"{__name__}.{module}"))
        found += [
            value
            for value in named.values()
            if isinstance(value, type) and issubclass(value, Order) and value.__module__ == f"{__name__}.{module}"
        ]
    return tuple(found)


ORDERS: tuple[type[Order], ...] = _orders()
AnyOrder: Any = reduce(or_, ORDERS)
"""The tagged union of all of them."""
_BY_KIND: dict[str, Any] = {str(order.__struct_config__.tag): order for order in ORDERS}


def order_of(kind: str, fields: dict[str, Any]) -> Order:
    """The order that was recorded so. Raises msgspec.ValidationError."""
    order: Order = msgspec.convert({"type": kind, **fields}, _BY_KIND.get(kind, AnyOrder))
    return order
