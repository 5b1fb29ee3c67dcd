"""What a client asked for, as the scheduler and the workers see it: token ids, never text."""

from __future__ import annotations

from typing import Annotated

import msgspec

from pawl.lifecycle.grammar import Grammar


class SamplingParameters(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is drawn. Validated at the edge (`actors/tokenizer.py`); trusted from there on.

    `seed` is always set: where the client gave none the gateway draws one, so every run can be replayed.
    """

    temperature: float = 1.0
    """0 means greedy."""
    top_k: int = 0
    """0 means off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and output tokens (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Over output tokens only, as OpenAI defines it."""
    frequency_penalty: float = 0.0
    """Over output tokens only, as OpenAI defines it."""
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    """token id -> added to its logit."""
    seed: int = 0
    max_new_tokens: int = 128
    """Output tokens at the most; 0 is allowed (prompt log-probabilities only)."""
    min_new_tokens: int = 0
    """While fewer output tokens exist, stop tokens cannot be drawn."""
    stop_token_ids: tuple[int, ...] = ()
    """All tokens that end the request, the model's end-of-sequence tokens included unless ignored. <= 8."""
    eos_token_ids: tuple[int, ...] = ()
    """Those of `stop_token_ids` that are the model's own: decides between the causes `eos` and `stop_token`."""
    top_logprobs: int | None = None
    """None: no log-probabilities. n >= 0: the chosen token's, and the n likeliest."""
    token_ids_logprob: tuple[int, ...] = ()
    """Tokens whose log-probabilities are told at each place, after the likeliest; only where `top_logprobs` is set."""
    prompt_logprobs: bool = False
    """Also score the prompt's own tokens."""
    grammar: Grammar | None = None
    """What the output must be derived from. At its end only `eos_token_ids` can be drawn, of which there are some."""
    embed: bool = False
    """The answer is one vector, pooled from what the model makes of the prompt, and no token: `max_new_tokens` is 0."""

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether something is wanted of every position of the prompt, so that none may come from the cache."""
        return self.prompt_logprobs or self.embed

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def num_rivals(self) -> int | None:
        """Log-probabilities beside a token's own: the likeliest, then the named; None: none at all, nor its own."""
        return None if self.top_logprobs is None else self.top_logprobs + len(self.token_ids_logprob)

    @property
    def penalised(self) -> bool:
        """Whether sampling needs the token history."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


MAX_NAME = 128
MAX_OFFSET = 2**31 - 1
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]


class SessionParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of which session a request is a turn, and from where it goes on. The fields are SGLang's `session_params`."""

    id: Name
    rid: Name | None = None
    """The turn it goes on from; None: it begins anew, or in a streaming session goes on from the last one."""
    offset: Annotated[int, msgspec.Meta(ge=-MAX_OFFSET, le=MAX_OFFSET)] | None = None
    """So many of that turn's tokens stay, or with a negative number all but so many; 0: all."""
    replace: bool | None = None
    """Whether it takes the place of all that went on from that turn, or of that turn itself where it is live."""
    drop_previous_output: bool | None = None
    """Go on from that turn's prompt, not from its output."""


MAX_STOP_TOKENS = 8
MAX_TOP_LOGPROBS = 20
MAX_TOKEN_IDS_LOGPROB = 128
