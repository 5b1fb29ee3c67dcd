"""The state machines that control messages move: a module a machine.

A machine in a module of this folder is documented; there is no list to add it to. A request's own is
`lifecycle/machine.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from pawl.lifecycle.machines.base import Machine


def _machines() -> tuple[Machine[Any, Any], ...]:
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [vars(importlib.import_module(f"{__name__}.{module}")).values() for module in modules]
    return tuple(value for values in found for value in values if isinstance(value, Machine))


MACHINES: tuple[Machine[Any, Any], ...] = _machines()
