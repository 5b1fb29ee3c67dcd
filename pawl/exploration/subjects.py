"""Schedulers that are not ours, by name. Nothing heavy is imported here."""

from __future__ import annotations

SUBJECTS: dict[str, str] = {}
"""Name on the command line -> where the class of its adapter stands, as MODULE:CLASS. Each imports its peer, which need
not be installed."""
