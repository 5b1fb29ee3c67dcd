"""The router's books: every open request with the tokens that its client has had, and who has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec
import numpy as np

from pawl.actors.messages.adapters import AdaptersNamed
from pawl.actors.messages.control import Stalled
from pawl.actors.messages.generate import Admitted, Ended, Generate, Resumed, StepTokens, Timing, Usage
from pawl.actors.messages.memory import MemoryReleased
from pawl.actors.messages.replicas import ReplicaLeft, ReplicaLost
from pawl.actors.messages.weights import WeightsServed
from pawl.actors.names import PREFILL, Names
from pawl.actors.placement import Load
from pawl.actors.present import Held
from pawl.lifecycle.machines.memory import in_order
from pawl.lifecycle.numbers import passed
from pawl.lifecycle.states import Cause
from pawl.loops.adapter import Named
from pawl.loops.orders.requests import Abort
from pawl.memory.arrays import Int32s

MOST_STREAMS = 1 << 31
MOST_ENDED = 4096
"""Requests that have ended and are remembered."""
Said: TypeAlias = Stalled | AdaptersNamed | WeightsServed | MemoryReleased
"""What replicas say of themselves, and what the router hears of."""
NOBODY = -1
"""In place of a replica's number: a request waits for one."""


def stream_of(request: int) -> int:
    """What the detokenizer knows a request by in place of a row: the same whichever replica has it. An int32, so it
    comes again, long after the request that had it before has ended."""
    return request % MOST_STREAMS


class Routed(msgspec.Struct, eq=False):
    """One request that a replica has, or had when it was lost."""

    generate: Generate
    """As the tokenizer sent it."""
    arrived: float
    """Monotonic seconds."""
    replica: int = NOBODY
    tokens: list[int] = msgspec.field(default_factory=list)
    """Output tokens that were passed on."""
    opened: bool = False
    """The detokenizer knows it."""
    prompt: Int32s | None = None
    """All of it, once a scheduler has taken the request: of a turn, with what it goes on from."""
    admitted: Admitted | None = None
    """The first admission, as it was passed on."""
    first_token: float = 0.0
    """When that was, which is told with the first token at the latest."""
    weights: str = ""
    """Fingerprint of those that drew the last of `tokens`."""
    num_older: int = 0
    """Tokens before those that these weights have drawn."""
    num_lost: int = 0
    """Replicas that were lost while they had it."""
    taken: bool = True
    """Its replica has it, or gets it before any request that came later. Else an order could overtake it, and waits
    until the replica has it."""
    aborted: tuple[Cause, str] | None = None
    """It is to end, for this cause."""
    finished: int | None = None
    """A stop string has ended it within so many output tokens; only its scheduler is still to say so."""
    ended: bool = False
    """Its end was told, where no replica says it."""

    def drew(self, token: int, weights: str) -> None:
        """Weights of this fingerprint have drawn one more, which was passed on."""
        if weights != self.weights:
            self.weights, self.num_older = weights, len(self.tokens)
        self.tokens.append(token)

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt, as far as they are known."""
        return len(self.generate.tokens if self.prompt is None else self.prompt)

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return self.num_prompt + len(self.tokens)

    def end(self, cause: Cause, message: str, now: float) -> Ended:
        """Its end, where no replica says it."""
        request = self.generate.request
        # Who never had memory has lost none.
        cached, retractions = (0, 0) if self.admitted is None else (self.admitted.cached_tokens, self.num_lost)
        usage = Usage(self.num_prompt, len(self.tokens), cached, retractions)
        return Ended(stream_of(request), request, cause, usage, Timing(self.arrived, ended=now), message)

    def again(self, now: float) -> Generate:
        """The request, for another replica: it goes on where the client is."""
        admitted, resumed = self.admitted, None
        if admitted is not None:
            taken = admitted.timing.admitted
            resumed = Resumed(
                output=np.array(self.tokens, np.int32),
                cached_tokens=admitted.cached_tokens,
                num_retractions=self.num_lost,
                admitted_s=0.0 if taken is None else now - taken,
                first_token_s=now - self.first_token if self.tokens else None,
                weights=self.weights,
                num_older=self.num_older,
            )
        made = msgspec.structs.replace(self.generate, resumed=resumed, age_s=now - self.arrived)
        if self.prompt is None:
            return made
        # Of a turn all tokens are known; its session has died with its replica.
        return msgspec.structs.replace(made, tokens=self.prompt, session=None)


class Others:
    """Requests that nobody has: not yet, or not any more."""

    def __init__(self) -> None:
        self._early: dict[int, Abort] = {}
        """Aborts that overtook their request."""
        self._ended: dict[int, int] = {}
        """The last that have ended -> the replica that said so. Who is on the way to the client may still fail then."""

    def came(self, request: int) -> Abort | None:
        """A new one is here, to be aborted if so. Those of a kind come in the order of their numbers."""
        early = self._early.get(request)
        for refused_before in passed(request, self._early):
            del self._early[refused_before]
        self._early.pop(request, None)
        return early

    def abort(self, request: int, order: Abort) -> int:
        """Somebody wants it to end, when it comes: the replica that it has ended in, or NOBODY."""
        if request not in self._ended:
            self._early[request] = order
        return self._ended.get(request, NOBODY)

    def end(self, request: int, replica: int) -> None:
        """This replica has said its end."""
        self._ended[request] = replica
        if len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]


class Passing:
    """How far the message of a step is passed on."""

    def __init__(self) -> None:
        self.sent = False
        self.num_drawn = 0


class Replica:
    """One replica as the router knows it."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.streams: Int32s = np.full(64, -1, np.int32)
        """Row of its scheduler -> stream of the request that has it."""
        self.num_open = self.num_tokens = 0
        """Requests that it has, and their tokens."""
        self.leaving = 0
        """Number of the order to leave: it takes no requests. 0: it stays."""
        self.pace = Stalled(0.0, replica=names.replica)
        self.adapters: tuple[Named, ...] = ()
        self.resting: tuple[Named, ...] = ()
        self.released = MemoryReleased((), names.replica)
        self.served: WeightsServed | None = None
        """What it told last of its weights; None: it serves what it was started with."""
        self.held = Held()
        """The weights that it took, once it takes requests."""
        self.vital = names.vital & names.own
        """Actors without which it cannot end a request on its own."""
        if names.role == PREFILL:  # what it computes goes by way of its storage
            self.vital |= {names.storage}

    @property
    def number(self) -> int:
        return self.names.replica

    @property
    def weights(self) -> str:
        """Fingerprint of what it serves; "": it is what it was started with."""
        return "" if self.served is None else self.served.fingerprint

    def hears(self, message: Said) -> None:
        """It has said this of itself."""
        match message:
            case Stalled():
                self.pace = message
            case AdaptersNamed(adapters, resting=resting):
                self.adapters, self.resting = adapters, resting
            case WeightsServed():
                self.served = message
            case MemoryReleased():
                self.released = message

    def lost(self, name: str, reason: str) -> ReplicaLost:
        """What the gateway is told when it is given up, as its actor `name` is gone."""
        return ReplicaLost(self.names.recorder, tuple(sorted(self.names.own)), name, reason)

    def left(self, *, whole: bool) -> ReplicaLeft:
        """What the gateway is told when it takes part no more; `whole`: others get nothing of what it had."""
        return ReplicaLeft(self.number, self.names.recorder, tuple(sorted(self.names.own)), whole)

    @property
    def load(self) -> Load:
        return Load(self.number, self.num_open, self.num_tokens)

    def holds(self, row: int, stream: int) -> None:
        """Its scheduler has given this row to the request of this stream."""
        if row >= len(self.streams):
            more = np.full(max(row + 1 - len(self.streams), len(self.streams)), -1, np.int32)
            self.streams = np.concatenate((self.streams, more))
        self.streams[row] = stream


def by_stream(message: StepTokens, streams: Int32s, rows: Int32s) -> StepTokens:
    """With the stream of each request in place of its row; `rows` are those of the tokens."""
    replace = msgspec.structs.replace
    return replace(
        message,
        rows=rows,
        ended=tuple([replace(end, row=stream_of(end.request)) for end in message.ended]),
        admitted=tuple([replace(each, row=int(streams[each.row])) for each in message.admitted]),
        prompt_logprobs=tuple([(int(streams[row]), scores) for row, scores in message.prompt_logprobs]),
        embeddings=tuple([(int(streams[row]), vector) for row, vector in message.embeddings]),
    )


def count(replicas: Mapping[int, Replica], routed: Mapping[int, Routed]) -> None:
    """Have each of these know how much it has to do, by the books."""
    for replica in replicas.values():
        mine = [each for each in routed.values() if each.replica == replica.number]
        replica.num_open, replica.num_tokens = len(mine), sum(each.num_tokens for each in mine)


def that_needs(replicas: Mapping[int, Replica], name: str) -> Replica | None:
    """The one of these that cannot go on without the actor `name`."""
    return next((replica for replica in replicas.values() if name in replica.vital), None)


def slowest(replicas: Mapping[int, Replica]) -> Stalled:
    """What the slowest of these said last; where there is none, nobody is slow."""
    paces = [each.pace for each in replicas.values()]
    return max(paces, key=lambda pace: (pace.seconds, pace.oldest_step_s, pace.silent_s), default=Stalled(0.0))


def named_by_all(replicas: Mapping[int, Replica]) -> AdaptersNamed:
    """Adapters that every one of these has, in the order of loading; what rests in some of them is not listed."""
    listed = set.intersection(*[set(each.adapters) for each in replicas.values()] or [set()])
    had = set.intersection(*[{*each.adapters, *each.resting} for each in replicas.values()] or [set()])
    in_order = sorted(had, key=lambda adapter: adapter.number)
    listed_ones = tuple(each for each in in_order if each in listed)
    return AdaptersNamed(listed_ones, resting=tuple(each for each in in_order if each not in listed))


def released_by_any(replicas: Mapping[int, Replica]) -> MemoryReleased:
    """Memory that one of these lacks."""
    return MemoryReleased(in_order({tag for each in replicas.values() for tag in each.released.tags}))


MERGED: Mapping[type, Callable[[Mapping[int, Replica]], Said]] = {
    Stalled: slowest,
    AdaptersNamed: named_by_all,
    MemoryReleased: released_by_any,
}
"""What only some replicas may say -> what holds of all of these."""
