"""Numbers on command lines."""

from __future__ import annotations

import argparse
import math


def finite(word: str) -> float:
    """Raises ArgumentTypeError for what is no number, or has no end."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{word!r} is no finite number")
    return value
