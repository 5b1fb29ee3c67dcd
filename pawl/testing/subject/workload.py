"""What is asked of a subject: settings, requests and what their clients do, drawn within what it offers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from pawl.features.row import Seeded, Source
from pawl.testing.subject.port import Offers, Settings

MOST_PROMPT, MOST_OUTPUT = 10, 6
ALPHABET = (97, 98, 99)
"""Tokens of prompts: few, so that prompts begin alike."""
SALTS = ("", "blue")


class Arrival(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request, and what its client does."""

    prompt: tuple[int, ...]
    max_new_tokens: int = 1
    after_tokens: int = 0
    """It is sent once all clients together have been told so many tokens, or nothing else can happen."""
    leaves_after: int | None = None
    """The client hangs up once it has been told so many tokens; 0: at any time after it has sent the request."""
    stop_after: int | None = None
    """Its output token number so many is a stop token."""
    priority: int = 0
    salt: str = ""


class Workload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Some requests to one subject."""

    arrivals: tuple[Arrival, ...]
    settings: Settings = Settings()
    flushes: tuple[int, ...] = ()
    """The cache is to be flushed once clients have been told so many tokens."""
    lost_steps: int = 0
    """Steps that may be lost, at the most."""

    @classmethod
    def random(cls, seed: int, offers: Offers, *, max_requests: int = 5) -> Workload:
        """A workload drawn from `seed`."""
        return drawn_workload(Seeded(seed), offers, max_requests)

    def pages_of(self, arrival: Arrival) -> int:
        """Pages that one request needs at its end."""
        return -(-(len(arrival.prompt) + arrival.max_new_tokens) // self.settings.page_size)


def drawn_workload(source: Source, offers: Offers, max_requests: int = 5) -> Workload:
    """Up to `max_requests` requests, each of which can run alone, for settings in which they come into each other's
    way."""
    page_size = source.pick(offers.page_sizes)
    priorities = offers.priorities and source.chance(0.4)
    prefix_caching = source.pick(offers.prefix_caching)
    arrivals: list[Arrival] = []
    for _ in range(source.within(1, max_requests)):
        arrivals.append(_drawn_arrival(source, offers, priorities, arrivals))
    drawn = Workload(arrivals=tuple(arrivals), settings=Settings(page_size=page_size))
    needs = [drawn.pages_of(arrival) for arrival in arrivals]
    fewest = max(needs) + offers.spare_pages
    longest = max(len(arrival.prompt) + arrival.max_new_tokens for arrival in arrivals)
    chunked = source.pick(offers.chunked_prefill)
    settings = Settings(
        # Mostly few: whoever runs must give way to others.
        num_pages=source.within(fewest, max(fewest, sum(needs) // source.pick((2, 1)) + offers.spare_pages)),
        page_size=page_size,
        max_running=source.within(1, max_requests) if source.chance(0.3) else max_requests,
        max_step_tokens=source.within(1, longest) + len(arrivals) if chunked else longest * source.pick((1, 2, 4)),
        max_context=longest,
        prefix_caching=prefix_caching,
        chunked_prefill=chunked,
        in_flight=source.pick(offers.in_flight),
        priorities=priorities,
    )
    flushes = offers.flush and prefix_caching and source.chance(0.3)
    return Workload(
        arrivals=tuple(arrivals),
        settings=settings,
        flushes=(source.within(0, 8),) if flushes else (),
        lost_steps=source.within(1, 2) if offers.lost_steps and source.chance(0.3) else 0,
    )


def _drawn_arrival(source: Source, offers: Offers, priorities: bool, before: Sequence[Arrival]) -> Arrival:
    common: tuple[int, ...] = ()
    if before and source.chance(0.6):
        other = source.pick(before).prompt
        common = other[: source.within(1, len(other))]
    length = source.within(max(1, len(common)), MOST_PROMPT)
    max_new_tokens = source.within(1, MOST_OUTPUT)
    return Arrival(
        prompt=common + tuple(source.pick(ALPHABET) for _ in range(length - len(common))),
        max_new_tokens=max_new_tokens,
        after_tokens=source.within(0, 6) if before and source.chance(0.4) else 0,
        leaves_after=source.within(0, max_new_tokens - 1) if offers.aborts and source.chance(0.25) else None,
        stop_after=source.within(1, max_new_tokens) if offers.stop_tokens and source.chance(0.2) else None,
        priority=source.within(0, 2) if priorities else 0,
        salt=source.pick(SALTS) if offers.salts and source.chance(0.3) else "",
    )


# ---- less ----


def smaller(workload: Workload, offers: Offers) -> Iterator[Workload]:
    """Workloads that ask less, or of a subject with less memory, the greatest step first."""
    replace = msgspec.structs.replace
    arrivals, settings = workload.arrivals, workload.settings
    for index in range(len(arrivals)) if len(arrivals) > 1 else ():
        yield replace(workload, arrivals=arrivals[:index] + arrivals[index + 1 :])
    for flush in range(len(workload.flushes)):
        yield replace(workload, flushes=workload.flushes[:flush] + workload.flushes[flush + 1 :])
    if workload.lost_steps:
        yield replace(workload, lost_steps=workload.lost_steps - 1)
    for plain in _plainer(settings, offers):
        yield replace(workload, settings=plain)
    fewest = max(map(workload.pages_of, arrivals)) + offers.spare_pages
    for count in dict.fromkeys((fewest, settings.num_pages - 1)):
        if fewest <= count < settings.num_pages:
            yield replace(workload, settings=replace(settings, num_pages=count))
    for index, arrival in enumerate(arrivals):
        for less in _less(arrival):
            yield replace(workload, arrivals=(*arrivals[:index], less, *arrivals[index + 1 :]))


def _plainer(settings: Settings, offers: Offers) -> Iterator[Settings]:
    replace = msgspec.structs.replace
    if settings.in_flight > min(offers.in_flight):
        yield replace(settings, in_flight=min(offers.in_flight))
    if settings.chunked_prefill and False in offers.chunked_prefill:
        yield replace(
            settings, chunked_prefill=False, max_step_tokens=max(settings.max_step_tokens, settings.max_context)
        )
    if settings.prefix_caching and False in offers.prefix_caching:
        yield replace(settings, prefix_caching=False)
    if settings.priorities:
        yield replace(settings, priorities=False)


def _less(arrival: Arrival) -> Iterator[Arrival]:
    replace = msgspec.structs.replace
    if len(arrival.prompt) > 1:
        for count in dict.fromkeys((len(arrival.prompt) // 2, len(arrival.prompt) - 1)):
            yield replace(arrival, prompt=arrival.prompt[:count])
    if arrival.max_new_tokens > 1:
        for count in dict.fromkeys((1, arrival.max_new_tokens // 2, arrival.max_new_tokens - 1)):
            yield replace(arrival, max_new_tokens=count)
    for name, plain in PLAIN.items():
        if getattr(arrival, name) != plain:
            yield replace(arrival, **{name: plain})
    if arrival.after_tokens > 1:
        yield replace(arrival, after_tokens=arrival.after_tokens - 1)
    if arrival.leaves_after:
        yield replace(arrival, leaves_after=arrival.leaves_after - 1)


PLAIN = {
    info.name: info.default for info in msgspec.structs.fields(Arrival) if info.name not in ("prompt", "max_new_tokens")
}
