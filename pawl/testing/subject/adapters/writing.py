"""How scripts of counterexamples are written."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType


def written(arguments: Mapping[str, object]) -> str:
    """Keyword arguments as they stand in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def source_of(calls: ModuleType) -> str:
    """The text of a module, as it can stand in the middle of a script."""
    return inspect.getsource(calls).partition("from __future__ import annotations\n")[2].strip()
