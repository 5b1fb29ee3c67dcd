"""Where the outputs of one request go, on the client's side of the gateway.

A client may read slower than the engine writes. Outputs are deltas, so two of them merge into one: an `Inbox` holds at
most one merged output, whose size is bounded by the request's own token limit, and never a queue.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.actors.messages.generate import Accepted, Done, Output, Refused, TokenLogprob


class Sink(Protocol):
    """One request's client as the gateway sees it. The calls come in this order: `accepted` at most once, any number
    of `push`, and the end exactly once: a `push` whose output is done, or `refused`. They must not raise."""

    def accepted(self, accepted: Accepted) -> None: ...

    def push(self, output: Output) -> None: ...

    def refused(self, refused: Refused) -> None: ...


class Delta(msgspec.Struct):
    """All that arrived since the last `Inbox.take`."""

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    done: Done | None = None
    refusal: Refused | None = None
    embedding: NDArray[np.float32] | None = None

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self.done is not None or self.refusal is not None


class Span(msgspec.Struct):
    """Output tokens start .. end - 1 of a request were drawn by weights of one version."""

    version: str
    start: int
    end: int


class Inbox:
    """A sink that merges what its reader has not taken yet.

    `ready` is the hook a reader overrides to be woken: it is called after each change that it should see. With
    `whole` set that is only the end, so that a client which wants one answer is not woken for each token.
    """

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole
        self.accept: Accepted | None = None
        """What is known once the scheduler has taken the request."""
        self.done: Done | None = None
        self.refusal: Refused | None = None
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: tuple[TokenLogprob, ...] = ()
        self._embedding: NDArray[np.float32] | None = None
        self._waiting = False
        self.version = ""
        """Of the weights, as it was told last."""
        self.spans: list[Span] = []
        """Which weights drew which of all output tokens so far."""

    @property
    def num_prompt(self) -> int | None:
        """Tokens of the prompt, once they are known."""
        return None if self.accept is None else self.accept.num_prompt

    @property
    def final(self) -> bool:
        """Whether the end has arrived (taken or not)."""
        return self.done is not None or self.refusal is not None

    def ready(self) -> None:
        """Called when there is something to take."""

    def accepted(self, accepted: Accepted) -> None:
        self.accept = accepted

    def push(self, output: Output) -> None:
        if output.text:
            self._texts.append(output.text)
        if output.tokens:
            self._tokens.extend(output.tokens)
            self._attribute(len(output.tokens), output.version)
        if output.logprobs:
            self._logprobs.extend(output.logprobs)
        if output.prompt_logprobs:
            self._prompt_logprobs = output.prompt_logprobs
        self.version = output.version or self.version
        self.done, self._embedding = output.done, output.embedding
        self._waiting = True
        if not self.whole or output.done is not None:
            self.ready()

    def _attribute(self, count: int, version: str) -> None:
        if self.spans and self.spans[-1].version == version:
            self.spans[-1].end += count
        else:
            start = self.spans[-1].end if self.spans else 0
            self.spans.append(Span(version, start, start + count))

    def refused(self, refused: Refused) -> None:
        self.refusal = refused
        self._waiting = True
        self.ready()

    def take(self) -> Delta | None:
        """Everything that came since the last call, as one; None when nothing did."""
        if not self._waiting:
            return None
        self._waiting = False
        delta = Delta(
            "".join(self._texts),
            tuple(self._tokens),
            tuple(self._logprobs),
            self._prompt_logprobs,
            self.done,
            self.refusal,
            self._embedding,
        )
        self._texts.clear()
        self._tokens.clear()
        self._logprobs.clear()
        self._prompt_logprobs = ()
        return delta
