"""The port: what a scheduler that is not ours must be able to do, so that it can be explored, judged and replayed.

An adapter is one class, made from `Settings`, with a handful of methods. It decides nothing: it hands requests and
tokens to the scheduler, and says what that has decided. docs/testing-your-scheduler.md builds one from nothing.

    submit(request), abort(number)     at any time
    step = schedule()                  what the next forward pass computes: positions and pages of each request
    outputs = apply(step, tokens)      what the model drew; what clients are told
    pages()                            where every page is

Steps are computed in the order in which they were scheduled, and come back in that order. Between `schedule` and
`apply` of one step there may be further calls: of `schedule` as often as `Settings.in_flight` allows, of the others
always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import msgspec

Ended: TypeAlias = Literal["", "length", "stop", "abort", "error"]
"""Why a request has ended: it has all tokens it asked for, or one of its stop tokens; somebody aborted it; the subject
failed. Empty: it has not ended."""
Tokens: TypeAlias = Mapping[int, int]
"""request -> the token that the model drew for it in one step. Requests of segments that draw none are left out."""


Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 12)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 12)]
NotEmpty = msgspec.Meta(min_length=1)


class Refused(Exception):
    """`submit` will not take the request: it can never run, say. It is as if it had never been sent."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a subject is made from. Drawn for each workload, within what it offers."""

    num_pages: int = 8
    """Pages that requests can have. What a subject keeps for itself, a null page say, comes on top."""
    page_size: int = 2
    """Tokens in a page."""
    max_running: int = 3
    """Requests at work at the same time."""
    max_step_tokens: int = 16
    """Positions that one step may compute, for a subject that says it keeps to this. Without chunked prefill, at least
    the longest request."""
    max_context: int = 16
    """Tokens, prompt and output, of any request."""
    prefix_caching: bool = False
    chunked_prefill: bool = False
    in_flight: int = 1
    """Steps scheduled and not applied, at the most. 1: the next one is scheduled when the last one was applied."""
    priorities: bool = False
    """Requests may have priorities, and are to be ordered by them."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for."""

    number: int
    """Its name in all that follows; from 1, never used again."""
    prompt: tuple[int, ...]
    """At least one token, each from 0 to 260."""
    max_new_tokens: int
    """At least 1. It ends with so many, unless a stop token comes before."""
    stop_token_ids: tuple[int, ...] = ()
    """The first one of these that is drawn is the last token of its output."""
    priority: int = 0
    """Larger ones first, equal ones in the order in which they came."""
    salt: str = ""
    """Requests of different salts share no pages."""


class Segment(msgspec.Struct, frozen=True):
    """What one step computes for one request: positions start .. start + count - 1 of prompt and output."""

    request: int
    start: int
    """Positions before it are computed already: they are read from the pages."""
    count: int
    """At least 1."""
    pages: Sequence[int]
    """The request's block table: page i holds positions i * page_size and on, as far as start + count at least. Ids are
    the subject's own. Positions before `start` are read, the others are written and then read."""
    samples: bool | None = None
    """The model draws a token after the last position. None: it does where the segment reaches the end of the prompt
    and all tokens that the request was told."""
    tokens: Sequence[int] | None = None
    """The tokens that the subject feeds to the model, `count` of them, where it does so itself. None: whatever the
    request has at these positions, those included that a step in flight draws."""


class Step(msgspec.Struct, frozen=True):
    """One forward pass, as the subject has decided it."""

    segments: Sequence[Segment]
    """At most one of each request. There may be none, when there is only something to tell: it is applied all the
    same."""
    preempted: Sequence[int] = ()
    """Requests that lost their memory while this was decided, and wait again."""
    own: Any = None
    """The subject's own batch, or what else `apply` needs. Nobody looks at it."""


class Output(msgspec.Struct, frozen=True):
    """What one client is told."""

    request: int
    tokens: Sequence[int] = ()
    """New ones: those that follow what it has been told before."""
    ended: Ended = ""


class Accounting(msgspec.Struct, frozen=True, kw_only=True):
    """Where every page is, between two calls. Each page is free, cached or owned, and nothing of it twice."""

    free: Sequence[int]
    """Nobody uses them, and nothing that they hold can be found again."""
    owned: Mapping[int, Sequence[int]]
    """request -> its block table. A page that several share is in each of theirs."""
    cached: Sequence[int] = ()
    """Nobody uses them, but what they hold may be found by another request."""
    references: Mapping[int, int] | None = None
    """page -> how many use it, as the subject itself counts; pages that nobody uses may be left out. None: it does not
    count."""
    requests: Sequence[int] | None = None
    """All requests that the subject keeps anything of: those that live, and no others at rest. None: it cannot say."""
    free_slots: int | None = None
    """Rows of a table of requests that nobody has. None: there is no such table."""


class Offers(msgspec.Struct, frozen=True, kw_only=True):
    """What a subject can do, and what it promises. What it does not offer is neither drawn nor judged, and the report
    says so."""

    page_sizes: Annotated[tuple[Positive, ...], NotEmpty] = (1, 2, 4)
    in_flight: Annotated[tuple[Positive, ...], NotEmpty] = (1,)
    """Values of `Settings.in_flight` with which it works."""
    prefix_caching: Annotated[tuple[bool, ...], NotEmpty] = (False,)
    chunked_prefill: Annotated[tuple[bool, ...], NotEmpty] = (False,)
    step_tokens: bool = False
    """It keeps to `Settings.max_step_tokens`."""
    aborts: bool = True
    flush: bool = False
    priorities: bool = False
    salts: bool = False
    stop_tokens: bool = False
    lost_steps: bool = False
    """A step may be lost: then `lost` is called in place of `apply`."""
    max_overtaken: Count | None = 0
    """So many requests that came later may begin before one that waits; 0: first come, first served. None: it does not
    promise any order."""
    spare_pages: Count = 0
    """Pages that a request must find beyond those of its own tokens, so that it can run alone: a watermark."""


@runtime_checkable
class Subject(Protocol):
    """A scheduler, behind its adapter. Deriving from this class is not needed, and gives what is optional.

    It is made as `Class(settings)`, and must be the same each time it is made and called the same: no clock, no random
    numbers of its own, no order of a set. What it raises is reported as the subject's fault.
    """

    offers: ClassVar[Offers] = Offers()

    def submit(self, request: Request) -> None:
        """A request has come. Raises Refused."""

    def abort(self, request: int) -> None:
        """The client is gone. Its request has ended when this returns, tokens of steps in flight are dropped. Called
        for requests that have not ended, once."""

    def schedule(self) -> Step | None:
        """Decide the next step; None when there is nothing to compute, or nothing can be before a step comes back."""

    def apply(self, step: Step, tokens: Tokens) -> Sequence[Output]:
        """The oldest step in flight is done: the one that `schedule` returned, and what was drawn in it. Says what
        clients are told. Tokens of requests that have ended meanwhile are among `tokens`, and nobody hears of them."""

    def pages(self) -> Accounting | None:
        """Where every page is; None: it cannot say, and nothing of it is judged."""
        return None

    def flush(self) -> bool:
        """Forget what is cached. False: not now, and nothing has changed."""
        return False

    def lost(self, step: Step) -> None:
        """A step was not computed and never will be. Called for all steps in flight, the newest first."""
        raise NotImplementedError


# ---- a counterexample without Pawl ----


class Made(msgspec.Struct, frozen=True):
    """The subject is made. In a script, what is imported and what later lines need comes with it."""

    settings: Settings


class Submit(msgspec.Struct, frozen=True):
    request: Request


class Abort(msgspec.Struct, frozen=True):
    request: int


class Schedule(msgspec.Struct, frozen=True):
    number: int
    """Of the step, from 1: a name for the variable that holds it."""


class Apply(msgspec.Struct, frozen=True):
    number: int
    tokens: Mapping[int, int]


class Lost(msgspec.Struct, frozen=True):
    number: int


class Flush(msgspec.Struct, frozen=True):
    pass


class Look(msgspec.Struct, frozen=True):
    """The books are looked at: a script prints them."""


Call: TypeAlias = Made | Submit | Abort | Schedule | Apply | Lost | Flush | Look
"""One call of the port, as it was made in a run."""


@runtime_checkable
class Scripted(Protocol):
    """A subject whose counterexamples can be written as scripts of plain calls to its own classes."""

    @classmethod
    def script_of(cls, call: Call) -> str:
        """Lines of Python that do to the scheduler itself what the adapter does in this call. A script is these, call
        after call, with comments between them that say what was decided, and what is wrong. It imports the subject
        only."""
