"""Orders about live requests: each ends some of them."""

from __future__ import annotations

from pawl.lifecycle.states import Cause
from pawl.loops.intake import Intake, Order


class Abort(Order, frozen=True, tag="abort"):
    """End these requests in whatever state they are. Numbers that are still on their way are remembered."""

    requests: tuple[int, ...]
    cause: Cause = Cause.CLIENT
    message: str = ""

    def apply(self, intake: Intake, now: float) -> None:
        intake.abort_all(self.requests, self.cause, self.message, now)


class Finish(Order, frozen=True, tag="finish"):
    """The detokenizer found a stop string: the text ends inside output token number `num_output` (counted from 1).
    Tokens beyond are dropped and not counted."""

    request: int
    num_output: int

    def apply(self, intake: Intake, now: float) -> None:
        intake.loop.requests.finish(self.request, self.num_output, now)


class CheckDeadlines(Order, frozen=True, tag="check_deadlines"):
    """Timer: end every request whose deadline has passed."""

    def apply(self, intake: Intake, now: float) -> None:
        intake.loop.requests.expire(now)


class Drain(Order, frozen=True, tag="drain"):
    """Take no more requests; end what is left after `grace_s` with cause `drained`."""

    grace_s: float

    def apply(self, intake: Intake, now: float) -> None:
        intake.draining = True
        intake.remind(self.grace_s, EndAll())


class EndAll(Order, frozen=True, tag="end_all"):
    """End every live request: the server stops, or whoever had the clients is gone."""

    cause: Cause = Cause.DRAINED

    def apply(self, intake: Intake, now: float) -> None:
        intake.loop.requests.drain(self.cause, now)
