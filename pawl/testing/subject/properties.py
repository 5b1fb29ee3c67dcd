"""The properties of subjects: what each says, and when it cannot be judged."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from pawl.testing.subject.port import Offers

PAGES, REFERENCES = "pages", "references"
"""What a subject may tell: where its pages are, and how many use each."""


RECORDS = "records"
"""Stands in tables for the properties that judge records, each of which has its own name where it fails."""


class Judged(NamedTuple):
    """One property."""

    name: str
    statement: str
    needs: str = ""
    """What the subject must offer or tell: a field of `Offers`, or one of the words above. Empty: nothing."""


PROPERTIES = (
    Judged("page_content", "What a step reads at each position is the request's own token, after its own tokens."),
    Judged("page_table", "A step has a page for every position that it computes, and no page twice for one request."),
    Judged("known_tokens", "A step is fed tokens that the request has, and loses none of them."),
    Judged("conservation", "Free, owned and cached pages are all pages, each once.", PAGES),
    Judged("single_owner", "A page that two requests have holds the same for both.", PAGES),
    Judged("reference_counts", "Each page is counted as used by those who have it.", REFERENCES),
    Judged("own_pages", "A step computes a request with pages that it has, none of them free.", PAGES),
    Judged("nothing_at_rest", "Once everybody has ended, no page, request or slot is kept.", PAGES),
    Judged("limits_hold", "A step computes no more requests than it may, nor, if it counts them, positions."),
    Judged("admission_order", "No more later requests than stated begin before one that waits.", "max_overtaken"),
    Judged("bounded_progress", "A request that fits alone is taken, and ends within a bounded number of steps."),
    Judged("outputs", "Each gets the tokens that its prompt alone implies, under any load, each when it was drawn."),
    Judged("ends_once", "Each ends once, for the reason that is true, and nothing is computed or told after that."),
    Judged("abort_is_total", "After an abort nothing of the request is computed or told.", "aborts"),
    Judged("flush_at_rest", "At rest the cache can be flushed, and is empty then.", "flush"),
    Judged("raises_nothing", "No call raises, but for a refusal."),
    Judged("returns", "Every call returns."),
    Judged("well_formed", "What calls return makes sense, and what they are given stays as it is."),
    Judged("deterministic", "The same calls have the same results."),
    Judged(RECORDS, "The properties of docs/properties.md that need no inside hold of what was observed."),
)
NAMES = tuple(each.name for each in PROPERTIES)


def unjudged(offers: Offers, tells: Collection[str]) -> Mapping[str, str]:
    """Property -> why it cannot be judged of a subject that offers and tells this."""
    reasons: dict[str, str] = {}
    for each in PROPERTIES:
        if each.needs in (PAGES, REFERENCES):
            if each.needs not in tells:
                what = "where pages are" if each.needs == PAGES else "how many use a page"
                reasons[each.name] = f"it does not tell {what}"
        elif each.needs == "max_overtaken":
            if offers.max_overtaken is None:
                reasons[each.name] = "it promises no order"
        elif each.needs and not getattr(offers, each.needs):
            reasons[each.name] = f"it does not offer `{each.needs}`"
    return reasons


def left_out(offers: Offers) -> list[str]:
    """What is not drawn, since the subject does not offer it."""
    switches = ("aborts", "flush", "priorities", "salts", "stop_tokens", "lost_steps", "step_tokens")
    missing = [name for name in switches if not getattr(offers, name)]
    missing += [name for name in ("prefix_caching", "chunked_prefill") if True not in getattr(offers, name)]
    return missing + (["in_flight above 1"] if max(offers.in_flight) == 1 else [])
