"""What one control message is: everything in which it differs from the others.

Route, admin check, command, trace record, replay, exploration and documentation follow from the row. The rows are in
`actors/control/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, TypeAlias, TypeVar, Union, get_args, get_origin

import msgspec

from pawl.actors.gathering import merged
from pawl.actors.messages.control import Reply
from pawl.actors.names import Names
from pawl.lifecycle.states import Cause
from pawl.loops.intake import Order, Outcome

if TYPE_CHECKING:
    from pawl.actors.gateway import Gateway
    from pawl.actors.scheduler import Scheduler
    from pawl.actors.worker import Worker

T = TypeVar("T")
Answer: TypeAlias = Callable[[Reply], None]
Facts: TypeAlias = Mapping[str, Any]
"""What the server knows of itself, for replies that show it."""
Shown: TypeAlias = tuple[int, Any]
"""HTTP status and body."""


class Source(Protocol):
    """Chance, for what simulated clients send."""

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""

    def chance(self, share: float) -> bool:
        """True in this share of all cases."""


class Who(StrEnum):
    """Who may send a message."""

    ANYONE = "anyone"
    ADMIN = "admin"


class Needs(StrEnum):
    """What a message needs of the loop."""

    NOTHING = "nothing"
    """It only looks, at the scheduler."""
    BETWEEN_STEPS = "between steps"
    """No step is being planned; steps may be in flight."""
    ROUTER = "the router"
    """It is done by the router, and changes nothing that any loop decides."""
    WORKER = "the worker"
    """It is done by the worker, between two steps, and changes nothing that the loop decides."""
    REST = "rest"
    """`Loop.at_rest`. The sender says how long to wait for that."""


def plain(reply: Reply, facts: Facts) -> Shown:
    """Whether it was done, the scheduler's words, and its facts; 400 for what was refused."""
    body = {"success": reply.ok} | ({"message": reply.message} if reply.message else {}) | reply.body
    if reply.ok:
        return HTTPStatus.OK, body
    return HTTPStatus.BAD_REQUEST, body | {"error": {"message": reply.message}}


def not_a_question(scheduler: Scheduler, message: Any) -> Outcome:
    """Of an order: its own `apply` is the handler."""
    raise TypeError(f"a {type(message).__name__} is an order")


def never(source: Source) -> None:
    """Simulated clients do not send it."""


class Parameter(NamedTuple):
    """One field of what a caller sends."""

    name: str
    """In the query, in JSON, and as a flag."""
    attribute: str
    kinds: frozenset[type]
    """Its types, None and what is in lists left out."""
    help: str
    required: bool


def parameters(kind: type[msgspec.Struct]) -> tuple[Parameter, ...]:
    """The fields of `kind`, with their help."""
    return tuple(
        Parameter(field.encode_name, field.name, *_described(field.type), field.required)
        for field in msgspec.structs.fields(kind)
    )


def _described(annotation: Any) -> tuple[frozenset[Any], str]:
    """The types and the description of `Annotated[A | B | None, Meta(description=…)]`."""
    metas = getattr(annotation, "__metadata__", ())
    inner = _bare(annotation)
    kinds = get_args(inner) if get_origin(inner) in (Union, UnionType) else (inner,)
    described = next((meta.description for meta in metas if meta.description), "")
    return frozenset(get_origin(_bare(kind)) or _bare(kind) for kind in kinds) - {type(None)}, described


def _bare(annotation: Any) -> Any:
    """The type in `Annotated[type, …]`."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


@dataclass(frozen=True, kw_only=True)
class Row:
    """One control message."""

    name: str
    """Of the command: `pawl ctl NAME`."""
    message: type[msgspec.Struct]
    """What the scheduler gets: an order, which changes the loop, is recorded and replayed (its own `apply` is the
    handler), or a question, which `look` answers. Fields carry their help as `msgspec.Meta(description=…)`."""
    look: Callable[[Scheduler, Any], Outcome] = not_a_question
    """Answers a question; needs nothing of the loop and changes nothing."""
    by_worker: Callable[[Worker, Any], Outcome] | None = None
    """Does what is asked of the worker, which gets the message in place of the scheduler, between two steps. It changes
    nothing that the loop decides."""
    at_router: bool = False
    """The router does it; where there is none, `look` says why it cannot be done."""
    at_stager: bool = False
    """The stager gets the message in place of the scheduler, and answers it."""
    body: type[msgspec.Struct] | None = None
    """What a caller sends, where that is not the message itself."""
    at_gateway: Callable[[Gateway, Any, Answer], None] | None = None
    """What the gateway makes of `body`; None: the body is the message, and the scheduler's reply is the answer."""
    raw: str | None = None
    """The field that a body which is no JSON holds (`application/octet-stream`); the others come in the query."""
    reply: Any = dict[str, Any]
    """The type of the HTTP body of a reply that is no error."""
    show: Callable[[Reply, Facts], Shown] = plain
    who: Who = Who.ANYONE
    admin_when: Callable[[Any], bool] | None = None
    """Bodies that only an admin may send, of a message that anyone may."""
    routes: tuple[str, ...] = ()
    """Paths; the first is the one that is documented, the others are aliases. Empty: it is sent from within only."""
    methods: tuple[str, ...] = ("POST",)
    """The first is what `pawl ctl` uses."""
    command: bool = True
    """Whether `pawl ctl` offers it; not where it is another engine's form of a message that it offers."""
    patience_s: float = 5.0
    """How long the gateway waits for the answer, beyond the time the message itself says."""
    draw: Callable[[Source], Any] = never
    """A body for a simulated client to send, or None: it sends none this time."""
    draws: int = 1
    """How often one is drawn for a run."""
    check: Callable[[Any, Reply], str | None] = lambda body, reply: None
    """What is wrong with the answer that a simulated client got, if anything."""
    proves: str = "bounded_progress"
    """The property that `check` speaks for."""
    undone_by: msgspec.Struct | None = None
    """What a simulated client that has sent it sends some time after the answer, so that the run goes on."""
    merge: Callable[[Sequence[Reply]], Reply] = merged
    """One answer from those of all replicas, in the order of their numbers; there are several."""
    session_of: Callable[[Any], str] | None = None
    """The session that the message is about: only the replica that has it gets the message, and for one that nobody
    has, the one that has the least to do. None: all replicas get it."""
    ends: frozenset[Cause] = field(default_factory=frozenset)
    """Causes with which it may end other clients' requests."""

    @property
    def drawn(self) -> bool:
        """Whether simulated clients send it."""
        return self.draw is not never

    @property
    def taken(self) -> type[msgspec.Struct]:
        """What a caller sends: in the query, as a JSON body, as flags."""
        return self.body or self.message

    @property
    def replayed(self) -> bool:
        """Whether it is an input of the replay."""
        return issubclass(self.message, Order)

    @property
    def needs(self) -> Needs:
        if self.by_worker is not None:
            return Needs.WORKER
        if self.at_router:
            return Needs.ROUTER
        if not issubclass(self.message, Order):
            return Needs.NOTHING
        return Needs.REST if self.message.at_rest else Needs.BETWEEN_STEPS

    @property
    def help(self) -> str:
        """From the docstring."""
        return " ".join((self.taken.__doc__ or "").split())

    def wait_s(self, body: Any) -> float:
        """How long its answer may take."""
        wait_s: float = self.patience_s + getattr(body, "timeout_s", 0.0)
        return wait_s

    def put(self, gateway: Gateway, body: Any, answer: Answer) -> None:
        """Have it carried out; `answer` is called exactly once."""
        if self.at_gateway is not None:
            self.at_gateway(gateway, body, answer)
        else:
            gateway.ask(body, answer, self.wait_s(body))

    def answerer(self, names: Names) -> str:
        """Who answers the message, among the actors of a replica."""
        if self.at_stager:
            return names.stager
        return names.scheduler if self.by_worker is None else names.worker
