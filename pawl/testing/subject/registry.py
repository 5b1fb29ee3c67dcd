"""Subjects by name: the adapters that come with Pawl, and anybody's own."""

from __future__ import annotations

from pawl.exploration.subjects import SUBJECTS
from pawl.testing.plugins import KeptPart, load, named
from pawl.testing.subject.port import Offers, Subject

METHODS = ("submit", "abort", "schedule", "apply", "pages")
"""What a subject must have; `flush` and `lost` too, where it offers them."""


def load_subject(name: str, kept: KeptPart | None = None) -> type[Subject]:
    """The class of a subject: a name of `SUBJECTS`, FILE.py:CLASS or MODULE:CLASS; of `kept` where its file is gone.
    Raises ValueError, in one line."""
    try:
        found = load(SUBJECTS.get(name, name), SUBJECTS, kept)
    except ValueError:
        raise
    except Exception as error:  # whatever its module does when it is imported
        raise ValueError(f"{name}: {type(error).__name__}: {error!s:.300}") from error
    offers = getattr(found, "offers", None)
    if not (isinstance(found, type) and isinstance(offers, Offers)):
        raise ValueError(f"{name} is no subject: a class whose `offers` says what it can do, see `Subject`")
    optional = [method for method, offered in (("flush", offers.flush), ("lost", offers.lost_steps)) if offered]
    missing = [method for method in (*METHODS, *optional) if not callable(getattr(found, method, None))]
    if missing:
        raise ValueError(f"{name} has no method {missing[0]}")
    if not all((*offers.page_sizes, *offers.in_flight, offers.prefix_caching, offers.chunked_prefill)) or not (
        offers.page_sizes and offers.in_flight
    ):
        raise ValueError(f"{name} offers no page size, or no number of steps in flight, above 0, or nothing to choose")
    return found


def know_subject(kind: type[Subject]) -> str:
    """The name by which a class can be loaded again."""
    return named(kind)
