"""The folder for what can be made again: weights, compiled kernels, traces."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$PAWL_CACHE`, else `~/.cache/pawl`; a user without a home has it in `/`, as containers do. It need not exist."""
    given = os.environ.get("PAWL_CACHE")
    try:
        return Path(given or "~/.cache/pawl").expanduser()
    except RuntimeError:
        return Path("/.cache/pawl")
