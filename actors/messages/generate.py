"""Messages on the walk of one request: gateway -> tokenizer -> scheduler -> detokenizer -> gateway.

`request` is a number the gateway gives out, unique for the life of the engine and rising: it is the incarnation.
`rid` is the client's own name for the request (or one made for it); it is never used to address anything.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.actors.measures import Operation
from pawl.lifecycle.request import SamplingParameters, SessionParameters
from pawl.lifecycle.states import Cause
from pawl.lifecycle.step import PromptLogprobs, StepLogprobs


class TextOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What only tokenizer and detokenizer care about."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    """Keep the matched stop string in the text (native `no_stop_trim`)."""
    min_tokens: int = 0
    """Stop strings are not looked for in the text of output tokens before this one (counted from 1)."""
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    detokenize: bool = True
    return_prompt: bool = False
    """Whether `Accepted` holds the prompt's token ids."""
    after_prompt: bool = False
    """The prompt's text is shown before: a character that it ends within begins this one."""
    in_reasoning: bool = False
    """The tokenizer found the prompt to end with `Submit.reasoning_mark`."""


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one request at its end."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    retractions: int = 0
    draft_tokens: int = 0
    """Tokens that were drafted for it."""
    accepted_tokens: int = 0
    """Those of them that became output."""


class Timing(msgspec.Struct, frozen=True):
    """Monotonic seconds, all on the scheduler's clock; None where the request never got there."""

    submitted: float
    admitted: float | None = None
    first_token: float | None = None
    ended: float = 0.0


# ---- gateway -> tokenizer ----


class Submit(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """One valid request as the edge understood it: exactly one of `text`, `token_ids`, `chat` is set."""

    request: int
    rid: str
    group: str = ""
    """A second name, which the choices of one prompt share."""
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    chat: tuple[dict[str, Any], ...] | None = None
    """Chat messages for the model's template."""
    template_options: dict[str, Any] = msgspec.field(default_factory=dict)
    reasoning_mark: str = ""
    """What a rendered chat ends with where the reply begins within the model's reasoning."""
    sampling: SamplingParameters = SamplingParameters()
    """Complete but for `fill_context`, and valid: the edge has checked it."""
    fill_context: bool = False
    """The client set no limit: `max_new_tokens` is cut to what the prompt leaves of the context."""
    text_options: TextOptions = TextOptions()
    priority: int = 0
    """Larger runs first under the policy `priority`."""
    timeout_s: float | None = None
    cache_salt: str = ""
    """Requests with different salts share no prefix pages."""
    adapter: str = ""
    """Name of the adapter that it is computed with; empty: none."""
    incarnation: int = 0
    """Of that name when the gateway took the request, which fills it in; 0: none."""
    session: SessionParameters | None = None
    """It is a turn of this session."""
    scored_from: int = 0
    """Of a turn: the first position of its prompt whose score is wanted. There must be one."""

    @property
    def operation(self) -> Operation:
        """What it is for."""
        if self.sampling.embed:
            return Operation.EMBEDDINGS
        return Operation.TEXT_COMPLETION if self.chat is None else Operation.CHAT


# ---- tokenizer -> scheduler, through the router where there are several replicas ----


class Resumed(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What a replica that was lost had done of a request. The next one goes on from there, as after a lost step."""

    output: NDArray[np.int32]
    """Output tokens that its client has had."""
    cached_tokens: int
    """As its client is told: of its first admission."""
    num_retractions: int
    """Times that it has lost its memory, at least 1."""
    admitted_s: float
    """Seconds since then."""
    first_token_s: float | None
    """Seconds since it had its first token; None: it has none."""
    weights: str
    """Fingerprint of those that drew the last token of `output`."""
    num_older: int
    """Tokens of `output` before those that these weights have drawn."""


class Generate(msgspec.Struct, frozen=True, tag=True, kw_only=True, eq=False):
    """A valid request in token ids."""

    request: int
    rid: str
    tokens: NDArray[np.int32]
    sampling: SamplingParameters
    text_options: TextOptions
    priority: int = 0
    timeout_s: float | None = None
    namespace: str = ""
    """`Submit.cache_salt`"""
    adapter: int = 0
    """Number of its adapter; 0: none."""
    session: SessionParameters | None = None
    scored_from: int = 0
    age_s: float = 0.0
    """Seconds since another replica was given it, which was lost."""
    resumed: Resumed | None = None


# ---- scheduler -> detokenizer, through the router where there are several replicas ----


class Opened(msgspec.Struct, frozen=True, tag=True, eq=False):
    """The scheduler took the request under row `row`; sent before anything else that names the row."""

    row: int
    request: int
    text_options: TextOptions
    num_prompt: int
    prompt: NDArray[np.int32]
    num_rivals: int | None = None
    """Log-probabilities beside each token's own; None: the request asked for none."""
    replica: int = 0
    scores_prompt: bool = False
    """Whether the prompt's tokens have log-probabilities, too."""


class Admitted(msgspec.Struct, frozen=True):
    """What the scheduler learned when it admitted the request (again): lets the detokenizer state usage and timing of a
    request that a stop string ends, before the scheduler knows of the end."""

    row: int
    cached_tokens: int
    timing: Timing
    """Submitted and admitted; the rest is still to come."""


class Ended(msgspec.Struct, frozen=True, eq=False):
    """A request's one terminal event; the row may name another request afterwards."""

    row: int
    request: int
    cause: Cause
    usage: Usage
    timing: Timing
    message: str = ""
    matched: int | None = None
    """The stop token that ended it (causes eos and stop_token); it is the last output token and has no text."""


class StepTokens(msgspec.Struct, frozen=True, tag=True, eq=False):
    """All that one committed step (or one abort) gave: tokens first, then ends. One message for each step."""

    rows: NDArray[np.int32]
    tokens: NDArray[np.int32]
    logprobs: StepLogprobs | None = None
    prompt_logprobs: tuple[tuple[int, PromptLogprobs], ...] = ()
    """(row, scores)"""
    ended: tuple[Ended, ...] = ()
    admitted: tuple[Admitted, ...] = ()
    """Requests admitted since the last message, if they are still open."""
    embeddings: tuple[tuple[int, NDArray[np.float32]], ...] = ()
    """(row, vector)"""
    version: str = ""
    """Of the weights that drew the tokens, as replies call it."""
    weights: str = ""
    """Their fingerprint."""
    replica: int = 0


# ---- detokenizer (and tokenizer, for what it refuses) -> gateway ----


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probability of one token and its rivals. There may be millions, none of which can be part of a cycle: the
    garbage collector does not look at them."""

    token: int
    logprob: float | None
    text: str
    top: tuple[tuple[int, float, str], ...] = ()
    """(token, logprob, text), likeliest first; then those that the request named."""
    rank: int | None = None
    """How many tokens are at least as likely, itself included; None: not known, as of drawn tokens."""


class Done(msgspec.Struct, frozen=True):
    """The one terminal record a client sees."""

    cause: Cause
    usage: Usage
    timing: Timing
    message: str = ""
    matched: str | int | None = None
    """Stop string or stop token."""


class Output(msgspec.Struct, frozen=True, eq=False):
    """Something new for one client."""

    request: int
    text: str
    """New text (a delta)."""
    tokens: tuple[int, ...]
    """New output token ids."""
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """The whole prompt's, with the first output; the first entry has logprob None."""
    done: Done | None = None
    embedding: NDArray[np.float32] | None = None
    """The vector of a request that wanted one, with its end."""
    version: str = ""
    """Of the weights that drew the tokens."""


class Outputs(msgspec.Struct, frozen=True, tag=True, eq=False):
    """All that one step gave to the clients. One message for each step."""

    outputs: tuple[Output, ...]


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """detokenizer -> gateway: the scheduler has taken the request; comes before its outputs, on their lane."""

    request: int
    num_prompt: int
    in_reasoning: bool = False
    """The reply begins within the model's reasoning."""
    prompt: tuple[int, ...] = ()
    """Where it was asked for."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """tokenizer -> gateway: the request is not valid; it never reached the scheduler. Its terminal reply."""

    request: int
    cause: Cause
    message: str
    status: int = 400
    """HTTP status: 400, 404, 413 or 422."""
    param: str | None = None
