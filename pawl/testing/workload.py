"""What a simulated server is asked: requests with their times, and the size of the server. Plain data, small, in JSON.

Sizes are chosen to make trouble: a few pages, few slots, prompts with beginnings in common, clients that leave.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec

from pawl.lifecycle.request import SamplingParameters
from pawl.loops.select import LoopConfig

if TYPE_CHECKING:
    from hypothesis import strategies as st

TOKENS = (97, 98)
"""Token ids of prompts: two are enough for beginnings that are equal, and for some that are not."""


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One request, and what its client does."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    at_s: float = 0.0
    """When it is sent, virtual seconds."""
    after_tokens: int = 0
    """It is sent once all clients together have been told so many output tokens, or nobody waits for any. Work takes
    no virtual time, so this is how a request comes in the middle of other requests' work."""
    leaves_after: int | None = None
    """The client hangs up once it has seen so many output tokens; 0: as soon as it has sent the request."""
    stop_after: int | None = None
    """The text of its output token number so many is a stop string."""
    seed: int | None = None
    """Sampled with this seed at temperature 1; None: greedy."""
    priority: int = 0
    salt: str = ""
    timeout_s: float | None = None


class Flush(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody has the prefix cache emptied."""

    at_s: float = 0.0
    after_tokens: int = 0
    """As of an arrival."""
    timeout_s: float = 0.0
    """How long to wait for the engine to rest; 0: now or not at all."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The server: the fields of `LoopConfig` that matter here."""

    num_pages: int = 8
    page_size: int = 2
    max_running: int = 3
    prefill_chunk: int = 4
    lookahead: int = 2
    pacing: str = "overlap"
    mixed: bool = True
    policy: str = "fcfs"
    cache: str = "radix"
    eviction: str = "lru"
    window: int | None = None
    num_window_pages: int | None = None
    max_context: int | None = None
    """None: what the pages hold."""
    max_queued: int = 16
    scheduler: str = ""
    """A scheduler of your own, see `pawl.testing.plugins`; policy and cache may be your own as well."""

    def loop_config(self) -> LoopConfig:
        """As the scheduler takes it."""
        fields = msgspec.structs.asdict(self)
        del fields["scheduler"]
        if self.max_context is None:
            fields["max_context"] = self.num_pages * self.page_size
        return LoopConfig(**fields, weights="ghost")


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Some requests to one server."""

    arrivals: tuple[Arrival, ...]
    shape: Shape = Shape()
    flushes: tuple[Flush, ...] = ()

    @classmethod
    def random(cls, seed: int, *, max_requests: int = 5, **shape: Any) -> Workload:
        """A workload drawn from `seed`; fields of `shape` are fixed."""
        source = random.Random(seed)
        page_size = shape.get("page_size", source.choice((1, 2, 4)))
        drawn: dict[str, Any] = {
            "num_pages": source.randrange(3, 11),
            "page_size": page_size,
            "max_running": source.randrange(1, 5),
            "prefill_chunk": page_size * source.randrange(1, 4),
            "lookahead": source.choice((0, 0, 1, 4)),
            "pacing": source.choice(("overlap", "lockstep")),
            "mixed": source.random() < 0.5,
            "cache": "radix" if source.random() < 0.8 else "none",
        }
        made = Shape(**(drawn | shape))
        context = made.num_pages * made.page_size
        count = source.randrange(1, max_requests + 1)
        arrivals = tuple(_arrival(source, context) for _ in range(count))
        return cls(arrivals=arrivals, shape=made, flushes=_flushes(source))

    @property
    def num_tokens(self) -> int:
        """Of all prompts and outputs."""
        return sum(len(arrival.prompt) + arrival.max_new_tokens for arrival in self.arrivals)

    def encode(self) -> str:
        """As JSON."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> Workload:
        """What `encode` gave. Raises msgspec.ValidationError."""
        return msgspec.json.decode(text, type=cls)

    def smaller(self) -> list[Workload]:
        """Workloads that ask less, the greatest step first."""
        found: list[Workload] = []
        arrivals = self.arrivals
        for index in range(len(self.flushes)):
            fewer = self.flushes[:index] + self.flushes[index + 1 :]
            found.append(msgspec.structs.replace(self, flushes=fewer))
        for index, arrival in enumerate(arrivals):
            before, after = arrivals[:index], arrivals[index + 1 :]
            if before or after:
                found.append(msgspec.structs.replace(self, arrivals=before + after))
            for less in _less(arrival):
                found.append(msgspec.structs.replace(self, arrivals=(*before, less, *after)))
        return found


def parameters_of(arrival: Arrival) -> SamplingParameters:
    """What its client asks for; without a seed, the likeliest tokens."""
    if arrival.seed is None:
        return SamplingParameters(max_new_tokens=arrival.max_new_tokens, temperature=0.0)
    return SamplingParameters(max_new_tokens=arrival.max_new_tokens, temperature=1.0, seed=arrival.seed)


def _arrival(source: random.Random, context: int) -> Arrival:
    length = source.randrange(1, max(2, min(context - 1, 13)))
    outputs = source.randrange(1, max(2, min(context - length, 9)))
    kind = source.random()
    return Arrival(
        prompt=tuple(source.choice(TOKENS) for _ in range(length)),
        max_new_tokens=outputs,
        at_s=source.choice((0.0, 0.0, 0.0, 0.001, 0.3)),
        leaves_after=source.randrange(0, outputs + 1) if kind < 0.3 else None,
        stop_after=source.randrange(1, outputs + 1) if 0.3 <= kind < 0.45 else None,
        seed=source.randrange(100) if 0.45 <= kind < 0.7 else None,
        priority=source.randrange(2),
        salt=source.choice(("", "", "", "salt")),
        timeout_s=0.2 if 0.7 <= kind < 0.8 else None,
    )


def _flushes(source: random.Random) -> tuple[Flush, ...]:
    if source.random() < 0.7:
        return ()
    return (Flush(at_s=source.choice((0.0, 0.001)), timeout_s=source.choice((0.0, 0.5))),)


def _less(arrival: Arrival) -> list[Arrival]:
    replace = msgspec.structs.replace
    plain = Arrival(prompt=arrival.prompt, max_new_tokens=arrival.max_new_tokens)
    found = []
    if len(arrival.prompt) > 1:
        found += [replace(arrival, prompt=arrival.prompt[: len(arrival.prompt) // 2])]
        found += [replace(arrival, prompt=arrival.prompt[:-1])]
    if arrival.max_new_tokens > 1:
        found += [replace(arrival, max_new_tokens=count) for count in (1, arrival.max_new_tokens - 1)]
    for name in ("leaves_after", "stop_after", "seed", "priority", "salt", "timeout_s", "at_s", "after_tokens"):
        if getattr(arrival, name) != getattr(plain, name):
            found.append(replace(arrival, **{name: getattr(plain, name)}))
    return found


def workloads(*, max_requests: int = 5, **shape: Any) -> st.SearchStrategy[Workload]:
    """Hypothesis strategy: workloads that shrink to few, short, plain requests. Fields of `shape` are fixed."""
    from hypothesis import strategies as st

    @st.composite
    def drawn(draw: st.DrawFn) -> Workload:
        page_size = shape.get("page_size", draw(st.sampled_from((1, 2, 4))))
        fields: dict[str, Any] = {
            "num_pages": draw(st.integers(3, 10)),
            "page_size": page_size,
            "max_running": draw(st.integers(1, 4)),
            "prefill_chunk": page_size * draw(st.integers(1, 3)),
            "lookahead": draw(st.integers(0, 4)),
            "pacing": draw(st.sampled_from(("lockstep", "overlap"))),
            "mixed": draw(st.booleans()),
            "cache": draw(st.sampled_from(("none", "radix"))),
        }
        made = Shape(**(fields | shape))
        context = made.num_pages * made.page_size

        @st.composite
        def arrivals(draw: st.DrawFn) -> Arrival:
            length = draw(st.integers(1, max(1, min(context - 1, 12))))
            outputs = draw(st.integers(1, max(1, min(context - length, 8))))
            return Arrival(
                prompt=tuple(draw(st.lists(st.sampled_from(TOKENS), min_size=length, max_size=length))),
                max_new_tokens=outputs,
                at_s=draw(st.sampled_from((0.0, 0.001, 0.3))),
                leaves_after=draw(st.none() | st.integers(0, outputs)),
                stop_after=draw(st.none() | st.integers(1, outputs)),
                seed=draw(st.none() | st.integers(0, 99)),
                priority=draw(st.integers(0, 1)),
                salt=draw(st.sampled_from(("", "salt"))),
                timeout_s=draw(st.none() | st.just(0.2)),
            )

        flush = st.builds(Flush, at_s=st.sampled_from((0.0, 0.001)), timeout_s=st.sampled_from((0.0, 0.5)))
        return Workload(
            arrivals=tuple(draw(st.lists(arrivals(), min_size=1, max_size=max_requests))),
            shape=made,
            flushes=tuple(draw(st.lists(flush, max_size=1))),
        )

    return drawn()
