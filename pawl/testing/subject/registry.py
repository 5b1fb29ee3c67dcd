"""Subjects by name: the adapters that come with Pawl, and anybody's own."""

from __future__ import annotations

from pawl.exploration.subjects import SUBJECTS
from pawl.testing.plugins import KeptPart, load, named
from pawl.testing.subject.port import Subject


def load_subject(name: str, kept: KeptPart | None = None) -> type[Subject]:
    """The class of a subject: a name of `SUBJECTS`, FILE.py:CLASS or MODULE:CLASS; of `kept` where its file is gone.
    Raises ValueError, in one line."""
    found = load(SUBJECTS.get(name, name), SUBJECTS, kept)
    if not (isinstance(found, type) and hasattr(found, "schedule") and hasattr(found, "apply")):
        raise ValueError(f"{name} is no subject: it must be a class with the methods of pawl.testing.subject.Subject")
    return found


def know_subject(kind: type[Subject]) -> str:
    """The name by which a class can be loaded again."""
    return named(kind)
