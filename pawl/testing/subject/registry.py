"""Subjects by name: the adapters that come with Pawl, and anybody's own."""

from __future__ import annotations

import msgspec

from pawl.exploration.subjects import SUBJECTS
from pawl.testing.plugins import KeptPart, load, named
from pawl.testing.subject.port import Offers, Subject


def load_subject(name: str, kept: KeptPart | None = None) -> type[Subject]:
    """The class of a subject: a name of `SUBJECTS`, FILE.py:CLASS or MODULE:CLASS; of `kept` where its file is gone.
    Raises ValueError, in one line."""
    found: type[Subject] = load(SUBJECTS.get(name, name), SUBJECTS, kept)
    check_subject_class(found, name)
    return found


def know_subject(kind: type[Subject]) -> str:
    """The name by which a class can be loaded again. Raises ValueError for one that is no subject."""
    check_subject_class(kind, kind.__qualname__)
    return named(kind)


def check_subject_class(kind: object, name: str) -> None:
    """Raises ValueError for what cannot be a subject. `Subject` itself has all methods, and they do nothing: whoever
    derives from it must have its own."""
    offers = getattr(kind, "offers", None)
    if not (isinstance(kind, type) and isinstance(offers, Offers)):
        raise ValueError(f"{name} is no subject: a class whose `offers` says what it can do, see `Subject`")
    try:
        msgspec.convert(msgspec.to_builtins(offers), Offers)
    except (msgspec.ValidationError, TypeError) as error:
        raise ValueError(f"{name}: its offers: {error}") from error
    wanted = {"submit": True, "abort": offers.aborts, "schedule": True, "apply": True}
    wanted |= {"flush": offers.flush, "lost": offers.lost_steps}
    for method in (method for method, is_wanted in wanted.items() if is_wanted):
        own = getattr(kind, method, None)
        if not callable(own) or own is getattr(Subject, method):
            raise ValueError(f"{name} has no method {method} of its own, and its offers ask for it")
    if not callable(getattr(kind, "pages", None)):
        raise ValueError(f"{name} has no method pages")
