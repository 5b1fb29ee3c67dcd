"""Edits that change nothing that anybody could see, and why. They are struck out of every sweep.

They are read from `equivalents.toml`: a table for each function, in it the edit as a sweep shows it, and the reason.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

FILE = Path(__file__).with_name("equivalents.toml")


def read(text: str) -> dict[str, str]:
    """File, function and edit -> why it changes nothing."""
    tables = tomllib.loads(text)
    return {f"{function}: {edit}": reason for function, edits in tables.items() for edit, reason in edits.items()}


EQUIVALENTS = read(FILE.read_text())
