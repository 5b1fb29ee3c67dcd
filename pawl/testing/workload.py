"""What a simulated server is asked: requests with their times, and the size of the server. Plain data, small, in JSON.

Sizes are chosen to make trouble: a few pages, few slots, prompts with beginnings in common, clients that leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pawl.actors.control import ROWS, Body, row_of
from pawl.actors.control.adapters import NAMES, drawn_load, drawn_unload
from pawl.actors.control.sessions import drawn_session
from pawl.features import request, server
from pawl.features.row import Feature, Seeded, Source, drawn
from pawl.lifecycle.grammar import Grammar
from pawl.lifecycle.request import MAX_OFFSET, MAX_TOP_LOGPROBS
from pawl.settings import AtLeastOne, AtLeastZero
from pawl.testing.shape import Seconds, Shape, SomeSeconds

Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(gt=0, le=2)]
Added = Annotated[float, Meta(ge=-2, le=2)]
AFew = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)]
Priority = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Offset = Annotated[int, Meta(ge=-MAX_OFFSET, le=MAX_OFFSET)]


class Arrival(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request, and what its client does."""

    prompt: tuple[int, ...]
    max_new_tokens: AtLeastZero
    rid: str = ""
    """Its name, which others may have had; a turn has one of its own. Empty: the gateway gives it one."""
    at_s: Seconds = 0.0
    """When it is sent, virtual seconds."""
    after_tokens: AtLeastZero = 0
    """It is sent once all clients together have been told so many output tokens, or nobody waits for any. Work takes
    no virtual time, so this is how a request comes in the middle of other requests' work."""
    leaves_after: AtLeastZero | None = None
    """The client hangs up once it has seen so many output tokens; 0: as soon as it has sent the request."""
    stop_after: AtLeastOne | None = None
    """The text of its output token number so many is a stop string."""
    stop: tuple[str, ...] = ()
    """Further stop strings."""
    include_stop: bool = False
    """What stopped it stays in its text."""
    stop_from: AtLeastZero = 0
    """Stop strings are not looked for in the text of output tokens before this one, counted from 1."""
    silent: bool = False
    """It wants no text."""
    return_prompt: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = True
    min_new_tokens: AtLeastZero = 0
    grammar: Grammar | None = None
    """Its output ends where this does, `ignore_eos` or not."""
    seed: AtLeastZero | None = None
    """Sampled with this seed at temperature 1; None: greedy."""
    top_k: AtLeastZero = 0
    top_p: Share = 1.0
    min_p: Share = 0.0
    repetition_penalty: Penalty = 1.0
    presence_penalty: Added = 0.0
    frequency_penalty: Added = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: AFew | None = None
    token_ids_logprob: tuple[int, ...] = ()
    prompt_logprobs: bool = False
    embed: bool = False
    """It wants the prompt's vector, and nothing of what is said above."""
    adapter: str = ""
    """A name; once the request is sent, where the adapter was read from."""
    priority: Priority = 0
    salt: str = ""
    timeout_s: SomeSeconds | None = None
    session: bool = False
    """It is a turn of the one session that there is."""
    turn_of: AtLeastZero | None = None
    """The earlier request that it goes on from. Without a time of its own it is sent when that one has ended."""
    offset: Offset = 0
    replace: bool = False
    drop_previous_output: bool = False
    with_previous: bool = False
    """It is sent in one call with the request before it, as the choices of one completion are."""


class Control(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Somebody sends a control message."""

    body: Body
    """One of those in `pawl.actors.control`, as its sender writes it."""
    at_s: float = 0.0
    after_tokens: int = 0
    """As of an arrival."""
    undo_s: float = 0.0
    """Virtual seconds from the answer to what undoes it, where its row has something that does."""


class Closing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The engine ends while there is work, once clients have been told so many output tokens."""

    after_tokens: int = 0
    grace_s: float | None = None
    """It drains: takes no more requests, and ends those that are left after so long. None: it stops at once."""


class Workload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Some requests to one server."""

    arrivals: tuple[Arrival, ...]
    shape: Shape = Shape()
    controls: tuple[Control, ...] = ()
    closing: Closing | None = None
    """None: it stops when everybody has been served."""
    encoded: bool = False
    """Every message goes through bytes on its way, as between processes."""
    processes: bool = False
    """Front and replicas are processes of their own: between them messages only keep their order along an edge."""

    @classmethod
    def random(cls, seed: int, *, max_requests: int = 5, **shape: Any) -> Workload:
        """A workload drawn from `seed`; fields of `shape` are fixed."""
        return drawn_workload(Seeded(seed), max_requests, shape)

    @property
    def num_tokens(self) -> int:
        """Tokens of all prompts and outputs."""
        return sum(len(arrival.prompt) + arrival.max_new_tokens for arrival in self.arrivals)

    def encode(self) -> str:
        """As JSON."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> Workload:
        """What `encode` gave. Raises msgspec.ValidationError."""
        return msgspec.json.decode(text, type=cls)


# ---- what is drawn ----


def drawn_workload(source: Source, max_requests: int, fixed: Mapping[str, Any]) -> Workload:
    """Any server and up to `max_requests` requests to it; fields of the server in `fixed` are as they are there."""
    shape = drawn_shape(source, fixed)
    arrivals: list[Arrival] = []
    for _ in range(source.within(1, max_requests)):
        arrivals.append(drawn_arrival(source, shape, arrivals))
    drawn_first = Workload(
        arrivals=tuple(arrivals),
        shape=shape,
        closing=_closing(source),
        encoded=source.chance(0.1),
        controls=_controls(source, arrivals),
    )
    shape = Shape(**drawn(server.OF_REPLICAS, source, msgspec.structs.asdict(shape), frozenset(fixed)))
    apart = source.chance(0.5 if shape.routed else 0.1)
    return msgspec.structs.replace(drawn_first, shape=shape, processes=apart)


def _closing(source: Source) -> Closing | None:
    drains = (None, 0.0, 0.2)
    return Closing(after_tokens=source.within(0, 6), grace_s=source.pick(drains)) if source.chance(0.17) else None


def drawn_shape(source: Source, fixed: Mapping[str, Any]) -> Shape:
    """A server with every feature of one engine that is not in `fixed`, where parts of one's own may be classes."""
    from pawl.testing.plugins import names_of

    fixed = names_of(fixed)
    return Shape(**drawn(server.OF_ONE, source, {"cache": "radix", **fixed}, frozenset(fixed)))


def drawn_arrival(source: Source, shape: Shape, before: Sequence[Arrival] = ()) -> Arrival:
    """A request with every feature of a request, behind those that were drawn before it."""
    values = drawn(request.FEATURES, source, _surroundings(shape, before), frozenset())
    return Arrival(**{name: value for name, value in values.items() if name in DEFAULTS})


def _surroundings(shape: Shape, before: Sequence[Arrival]) -> dict[str, Any]:
    """What the features of a request depend on, beside each other."""
    room = max(2, shape.room)
    return {
        request.ROOM: room,
        request.CONTEXT: max(room, shape.max_context or 0),
        request.BEFORE: [arrival.prompt for arrival in before],
        request.LORAS: shape.max_loras,
        request.TIERS: shape.host_pages + shape.storage_pages > 0,
    }


def _controls(source: Source, arrivals: Sequence[Arrival]) -> tuple[Control, ...]:
    """Each control message as its row draws it: most of the time, none. Some come in the middle of requests' work."""
    drawn_bodies = [body for row in ROWS for _ in range(row.draws) if (body := row.draw(source)) is not None]
    if any(arrival.session for arrival in arrivals) and source.chance(0.9):
        drawn_bodies.append(drawn_session(source))
    named = [name for name in NAMES if any(arrival.adapter == name for arrival in arrivals)]
    loads = [drawn_load(source, name) for name in named if source.chance(0.9)]
    drawn_bodies += [each for load in loads if source.chance(0.3) for each in drawn_unload(source, load.name)]
    return tuple([Control(body=load) for load in loads] + [_control(source, body) for body in drawn_bodies])


def _control(source: Source, body: Any) -> Control:
    undo_s = source.pick((0.0, 0.001, 0.5)) if row_of(body).undone_by is not None else 0.0
    after_tokens = source.within(1, 8) if source.chance(0.3) else 0
    return Control(body=body, after_tokens=after_tokens, at_s=source.pick((0.0, 0.001)), undo_s=undo_s)


def labels_of(workload: Workload) -> set[str]:
    """The features that a workload has, as `Feature.labels` calls them."""
    shape = msgspec.structs.asdict(workload.shape)
    found = {label for feature in server.FEATURES for label in feature.labels(shape, SHAPE_DEFAULTS)}
    for number, arrival in enumerate(workload.arrivals):
        values = msgspec.structs.asdict(arrival) | _surroundings(workload.shape, workload.arrivals[:number])
        found.update(label for feature in request.FEATURES for label in feature.labels(values, DEFAULTS))
    return found | {name for name, present in OF_A_WORKLOAD.items() if present(workload)}


OF_A_WORKLOAD: Mapping[str, Callable[[Workload], bool]] = {
    "encoded messages": lambda workload: workload.encoded,
    "several processes": lambda workload: workload.processes,
    "drain at work": lambda workload: workload.closing is not None and workload.closing.grace_s is not None,
    "stop at work": lambda workload: workload.closing is not None and workload.closing.grace_s is None,
}
"""Features of neither the server nor a request."""


def all_features() -> tuple[Feature, ...]:
    """Those of the server, then those of a request."""
    return (*server.FEATURES, *request.FEATURES)


def all_labels() -> list[str]:
    """What `labels_of` can give."""
    return [*(label for feature in all_features() for label in feature.all_labels), *OF_A_WORKLOAD]


DEFAULTS = {info.name: info.default for info in msgspec.structs.fields(Arrival)}
SHAPE_DEFAULTS = {info.name: info.default for info in msgspec.structs.fields(Shape)}
