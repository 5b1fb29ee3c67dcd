"""How scripts of counterexamples are written."""

from __future__ import annotations

from collections.abc import Mapping


def written(arguments: Mapping[str, object]) -> str:
    """Keyword arguments as they stand in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
