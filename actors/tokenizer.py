"""The tokenizer: what a client wrote to token ids, and the last check of a request before the scheduler.

Parameters are checked at the edge; what only token ids can show is found here, and past this actor a request is
trusted. Every `Submit` is answered within `receive`: by `Generate` to the scheduler, or by `Refused` to the gateway.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.actors.messages.generate import Generate, Refused, Submit
from pawl.actors.names import NAMES, Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.text.invalid import InvalidRequest, beyond_context
from pawl.actors.text.template import ChatTemplate
from pawl.actors.text.vocabulary import Vocabulary
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause

SLICE_CHARACTERS = 20_000
"""Encoded in some ten milliseconds."""
UNLIKELY_RATIO = 5
"""Characters for each token of the context beyond which a text hardly fits: prose has four, programs three."""


class _Read(NamedTuple):
    """A prompt that was read."""

    prompt: str | tuple[dict[str, Any], ...]
    options: dict[str, Any]
    """Of the template."""
    rendered: str | None
    """What the template made of a chat."""
    tokens: NDArray[np.int32]

    def is_of(self, submit: Submit) -> bool:
        """Whether the request is of the same call and prompt: then these are the very same objects."""
        prompt = submit.text if submit.text is not None else submit.chat
        return prompt is self.prompt and submit.template_options is self.options


class Tokenizer(Actor):
    """Keeps the prompt that it read last, whose choices come one after the other and share what the first gave."""

    accepts = Submit

    def __init__(self, vocabulary: Vocabulary, context_length: int, names: Names = NAMES) -> None:
        """`context_length` is how many tokens prompt and output may have together."""
        self._names = names
        self._vocabulary = vocabulary
        self._context_length = context_length
        self._template = ChatTemplate(vocabulary)
        self._last: _Read | None = None

    def receive(self, message: Submit) -> None:
        try:
            generate = self._understand(message)
        except InvalidRequest as error:
            self._refuse(message.request, error)
            return
        if not self.context.send(self._names.scheduler, generate):
            full = "the engine is overloaded: too many requests are waiting; try again later"
            self._refuse(message.request, InvalidRequest(full, status=503, cause=Cause.OVERLOADED))

    def requests_of(self, message: Submit) -> tuple[int, ...]:
        return (message.request,)

    def end_request(self, request: int) -> None:
        self._refuse(
            request, InvalidRequest("the server failed to read this request", status=500, cause=Cause.INTERNAL)
        )

    def _refuse(self, request: int, error: InvalidRequest) -> None:
        """In the CONTROL lane, which is never full: a terminal reply must arrive."""
        refused = Refused(request, error.cause, error.message, error.status, error.param)
        self.context.send(self._names.gateway, refused, Lane.CONTROL)

    def _understand(self, submit: Submit) -> Generate:
        """The request in token ids. Raises InvalidRequest."""
        if self._last is not None and self._last.is_of(submit):
            chat, tokens = self._last.rendered, self._last.tokens
        else:
            chat = None if submit.chat is None else self._rendered(submit, submit.chat)
            tokens = self._tokens(submit, chat)
            prompt = submit.text if submit.text is not None else submit.chat
            self._last = None if prompt is None else _Read(prompt, submit.template_options, chat, tokens)
        options, sampling = submit.text_options, self._fitting(submit, len(tokens))
        if submit.reasoning_mark and chat is not None and chat.rstrip().endswith(submit.reasoning_mark):
            options = msgspec.structs.replace(options, in_reasoning=True)
            sampling = _within_reasoning(sampling)
        return Generate(
            request=submit.request,
            rid=submit.rid,
            tokens=tokens,
            sampling=sampling,
            text_options=options,
            priority=submit.priority,
            timeout_s=submit.timeout_s,
            namespace=submit.cache_salt,
            adapter=submit.incarnation,
            session=submit.session,
            scored_from=submit.scored_from,
        )

    def _rendered(self, submit: Submit, chat: tuple[dict[str, Any], ...]) -> str:
        now = datetime.fromtimestamp(self.context.wall(), UTC)
        return self._template.render(chat, submit.template_options, now)

    def _tokens(self, submit: Submit, chat: str | None) -> NDArray[np.int32]:
        given = [submit.text is not None, submit.token_ids is not None, submit.chat is not None]
        if sum(given) != 1:
            raise InvalidRequest("exactly one of text, token_ids and chat must be given", param="prompt")
        if submit.token_ids is not None:
            tokens = self._checked_ids(submit.token_ids)
        elif chat is not None:
            # A template writes the beginning token itself where the model wants one.
            tokens = self._encode(chat, add_special=False)
        else:
            # A turn that goes on from another has its beginning token there.
            goes_on = submit.session is not None and submit.session.rid is not None
            tokens = self._encode(submit.text or "", add_special=not goes_on)
        if len(tokens) == 0:
            raise InvalidRequest("the prompt is empty: at least one token is needed", param="prompt")
        return tokens

    def _encode(self, text: str, add_special: bool) -> NDArray[np.int32]:
        most = self._context_length * self._vocabulary.longest_token
        if len(text) > most or len(text.encode(errors="surrogatepass")) > most:
            # Said before the work, which for as much text takes minutes.
            raise self._too_long(len(text) // self._vocabulary.longest_token, "at least ")
        if len(text) > max(SLICE_CHARACTERS, UNLIKELY_RATIO * self._context_length):
            self._check_slices(text)
        try:
            tokens = self._vocabulary.encode(text, add_special)
        except ValueError as error:
            raise InvalidRequest(str(error), param="prompt") from error
        # A token may have been added to the tokenizer alone.
        self._check_known(int(tokens.max(initial=0)))
        return tokens

    def _check_slices(self, text: str) -> None:
        """Refuse a text that is clearly too long by its first slices. Who waits behind it waits for these alone."""
        # A cut may cost some tokens, about as many as one long token has bytes.
        most, num_tokens = self._context_length + self._context_length // 8, 0
        for start in range(0, len(text), SLICE_CHARACTERS):
            num_tokens += len(self._vocabulary.encode(text[start : start + SLICE_CHARACTERS], add_special=False))
            most += 2 * self._vocabulary.longest_token
            if num_tokens > most:
                raise self._too_long(num_tokens, "at least ")

    def _checked_ids(self, ids: tuple[int, ...]) -> NDArray[np.int32]:
        if len(ids) > self._context_length:
            raise self._too_long(len(ids))
        for token in (min(ids, default=0), max(ids, default=0)):
            self._check_known(token)
        return np.array(ids, dtype=np.int32)

    def _check_known(self, token: int) -> None:
        if not 0 <= token < self._vocabulary.num_embeddings:
            last = self._vocabulary.num_embeddings - 1
            raise InvalidRequest(f"token id {token} is not in the model's vocabulary (0 to {last})", param="prompt")

    def _too_long(self, num_prompt: int, about: str = "") -> InvalidRequest:
        return InvalidRequest(
            f"This model's maximum context length is {self._context_length} tokens. However, your prompt has "
            f"{about}{num_prompt} tokens. Please shorten the prompt.",
            param="prompt",
            cause=Cause.TOO_LONG,
        )

    def _fitting(self, submit: Submit, num_prompt: int) -> SamplingParameters:
        """The parameters, which together with the prompt must fit the context."""
        context_length, sampling = self._context_length, submit.sampling
        room = context_length - num_prompt
        if room < (1 if submit.fill_context else 0):
            raise self._too_long(num_prompt)
        if submit.fill_context:
            if sampling.min_new_tokens > room:
                text = f"min_new_tokens ({sampling.min_new_tokens}) must not exceed the rest of the context ({room})"
                raise InvalidRequest(text, param="min_new_tokens")
            return msgspec.structs.replace(sampling, max_new_tokens=room)
        if sampling.max_new_tokens > room:
            raise beyond_context(context_length, num_prompt, sampling.max_new_tokens)
        return sampling


def _within_reasoning(sampling: SamplingParameters) -> SamplingParameters:
    """Of a request whose prompt ends within the model's reasoning: its grammar, if it has one that waits for the end of
    the reasoning, waits from the first token on."""
    grammar, replace = sampling.grammar, msgspec.structs.replace
    if grammar is None or grammar.reasoning is None:
        return sampling
    return replace(sampling, grammar=replace(grammar, reasoning=replace(grammar.reasoning, inside=True)))
