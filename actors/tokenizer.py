"""The tokenizer: what a client wrote to token ids, and the last check of a request before the scheduler.

Whatever is wrong with a request is found here or at the edge: past this actor a request is trusted. Every `Submit` is
answered within `receive`: by `Generate` to the scheduler, or by `Refused` to the gateway.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.actors.messages.generate import Accepted, Generate, Refused, Submit, TextOptions
from pawl.actors.names import NAMES, Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.sampling import build_sampling
from pawl.actors.text.invalid import InvalidRequest
from pawl.actors.text.template import ChatTemplate
from pawl.actors.text.vocabulary import Vocabulary
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause


class Limits(msgspec.Struct, frozen=True):
    """What a request may ask of this engine."""

    context_length: int
    """Prompt and output tokens together."""
    max_stop_strings: int = 16
    max_stop_characters: int = 1024
    """Of one stop string: as much text may have to be held back."""


class Tokenizer(Actor):
    """Keeps nothing between two requests."""

    accepts = Submit

    def __init__(self, vocabulary: Vocabulary, limits: Limits, names: Names = NAMES) -> None:
        self._names = names
        self._vocabulary = vocabulary
        self._limits = limits
        self._template = ChatTemplate(vocabulary)

    def receive(self, message: Submit) -> None:
        try:
            generate = self._understand(message)
        except InvalidRequest as error:
            self._refuse(message.request, error)
            return
        # The gateway learns the prompt before the first output can overtake it.
        typed = message.token_ids is not None
        prompt_tokens = None if typed else tuple(generate.tokens.tolist())
        self.context.send(self._names.gateway, Accepted(message.request, prompt_tokens), Lane.CONTROL)
        if not self.context.send(self._names.scheduler, generate):
            full = "the engine is overloaded: too many requests are waiting; try again later"
            self._refuse(message.request, InvalidRequest(full, status=503, cause=Cause.OVERLOADED))

    def _refuse(self, request: int, error: InvalidRequest) -> None:
        """In the CONTROL lane, which is never full: a terminal reply must arrive."""
        refused = Refused(request, error.cause, error.message, error.status, error.param)
        self.context.send(self._names.gateway, refused, Lane.CONTROL)

    def _understand(self, submit: Submit) -> Generate:
        """The request in token ids. Raises InvalidRequest."""
        _check_stops(submit.text_options, self._limits)
        tokens = self._tokens(submit)
        return Generate(
            request=submit.request,
            rid=submit.rid,
            tokens=tokens,
            sampling=self._sampling(submit.sampling, len(tokens)),
            text_options=submit.text_options,
            priority=submit.priority,
            timeout_s=submit.timeout_s,
            namespace=submit.cache_salt,
        )

    def _tokens(self, submit: Submit) -> NDArray[np.int32]:
        given = [submit.text is not None, submit.token_ids is not None, submit.chat is not None]
        if sum(given) != 1:
            raise InvalidRequest("exactly one of text, token_ids and chat must be given", param="prompt")
        if submit.token_ids is not None:
            tokens = self._checked_ids(submit.token_ids)
        elif submit.chat is not None:
            now = datetime.fromtimestamp(self.context.wall(), UTC)
            # A template writes the beginning token itself where the model wants one.
            tokens = self._encode(self._template.render(submit.chat, submit.template_options, now), add_special=False)
        else:
            tokens = self._encode(submit.text or "", add_special=True)
        if len(tokens) == 0:
            raise InvalidRequest("the prompt is empty: at least one token is needed", param="prompt")
        return tokens

    def _encode(self, text: str, add_special: bool) -> NDArray[np.int32]:
        try:
            return self._vocabulary.encode(text, add_special)
        except ValueError as error:
            raise InvalidRequest(str(error), param="prompt") from error

    def _checked_ids(self, ids: tuple[int, ...]) -> NDArray[np.int32]:
        last = self._vocabulary.size - 1
        for token in (min(ids, default=0), max(ids, default=0)):
            if not 0 <= token <= last:
                raise InvalidRequest(f"token id {token} is not in the vocabulary (0 to {last})", param="prompt")
        return np.array(ids, dtype=np.int32)

    def _sampling(self, fields: dict[str, Any], num_prompt: int) -> SamplingParameters:
        """Checked parameters that fit the context together with the prompt."""
        context_length = self._limits.context_length
        asked = fields.get("max_new_tokens")
        room = context_length - num_prompt
        if room < (1 if asked is None else 0):
            raise InvalidRequest(
                f"This model's maximum context length is {context_length} tokens. However, your prompt has "
                f"{num_prompt} tokens. Please shorten the prompt.",
                param="prompt",
                cause=Cause.TOO_LONG,
            )
        if fields.get("seed") is None:
            fields = {**fields, "seed": self.context.random.getrandbits(63)}
        sampling = build_sampling(
            fields,
            eos_token_ids=self._vocabulary.eos_ids,
            vocabulary_size=self._vocabulary.size,
            default_max_new_tokens=room,
        )
        if sampling.max_new_tokens > room:
            raise InvalidRequest(
                f"This model's maximum context length is {context_length} tokens. However, you requested "
                f"{num_prompt + sampling.max_new_tokens} tokens ({num_prompt} in the prompt, "
                f"{sampling.max_new_tokens} for the completion). Please shorten the prompt or the completion.",
                param="max_new_tokens",
                cause=Cause.TOO_LONG,
            )
        return sampling


def _check_stops(options: TextOptions, limits: Limits) -> None:
    if len(options.stop) > limits.max_stop_strings:
        raise InvalidRequest(
            f"at most {limits.max_stop_strings} stop strings are allowed, not {len(options.stop)}", param="stop"
        )
    for stop in options.stop:
        if not 0 < len(stop) <= limits.max_stop_characters:
            raise InvalidRequest(
                f"a stop string must have 1 to {limits.max_stop_characters} characters, not {len(stop)}", param="stop"
            )
    if options.stop and not options.detokenize:
        raise InvalidRequest("stop strings need text: they cannot be used with detokenize off", param="stop")
