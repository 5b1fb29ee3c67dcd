"""What the detokenizer keeps for one open request: its text so far, its stop strings, its scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from pawl.actors.messages.generate import Admitted, Done, Opened, TextOptions, Timing, TokenLogprob, Usage
from pawl.actors.text.incremental import Decoder, SilentDecoder, decoder_for
from pawl.actors.text.stop import StopMatcher
from pawl.actors.text.vocabulary import Vocabulary
from pawl.lifecycle.states import Cause
from pawl.lifecycle.step import PromptLogprobs, StepLogprobs


class ScoreLists(NamedTuple):
    """The scores of one message as lists: taken apart once, not once for each token."""

    chosen: list[float]
    top_tokens: list[list[int]]
    top: list[list[float]]
    ranks: Sequence[int | None]
    """None each for drawn tokens, which have none."""

    @classmethod
    def of(cls, scores: StepLogprobs | PromptLogprobs) -> ScoreLists:
        ranks = scores.ranks.tolist() if isinstance(scores, PromptLogprobs) else [None] * len(scores.chosen)
        return cls(scores.chosen.tolist(), scores.top_tokens.tolist(), scores.top.tolist(), ranks)


class Stream:
    """One request between `Opened` and its terminal record. Its memory does not grow with the output: the decoder and
    the stop matcher hold back a bounded tail, and prompt scores leave with the first output."""

    __slots__ = (
        "_cached_tokens",
        "_decoder",
        "_matcher",
        "_min_tokens",
        "_num_prompt",
        "_prompt",
        "_prompt_scores",
        "_timing",
        "_vocabulary",
        "decode",
        "embedding",
        "include_stop",
        "matched",
        "num_output",
        "num_rivals",
        "plain",
        "request",
    )

    def __init__(self, vocabulary: Vocabulary, opened: Opened, now: float) -> None:
        options = opened.text_options
        self.request = opened.request
        self.num_rivals = opened.num_rivals
        self.include_stop = options.include_stop
        self.num_output = 0
        self.matched: str | None = None
        """The stop string that ended the text; from then on the stream is closed and takes nothing more."""
        self._vocabulary = vocabulary
        self._num_prompt = opened.num_prompt
        self._prompt = opened.prompt
        self._cached_tokens = 0
        self._timing = Timing(submitted=now)
        self._decoder = _decoder(vocabulary, options)
        if options.after_prompt:
            self._decoder.follow(opened.prompt.tolist())
        self._min_tokens = options.min_tokens
        self._matcher = StopMatcher(options.stop, options.include_stop) if options.stop else None
        self._prompt_scores: list[TokenLogprob | None] | None = None
        if opened.scores_prompt and opened.num_prompt:
            # The first token has no score, and a prompt may have no other.
            first = int(opened.prompt[0])
            unscored = TokenLogprob(first, None, vocabulary.token_text(first))
            self._prompt_scores = [unscored, *([None] * (opened.num_prompt - 1))]
        self.embedding: NDArray[np.float32] | None = None
        """The vector of a request that wanted one, once it is there."""
        self.decode = self._decoder.push
        """Text that a token completes, without looking for stop strings: all that a plain stream needs."""
        self.plain = self._matcher is None and opened.num_rivals is None and self._prompt_scores is None
        """Neither stop strings nor scores: one call of `decode` a token is all there is to do."""

    @property
    def closed(self) -> bool:
        return self.matched is not None

    def push(self, token: int) -> str:
        """Text that this token, already counted, makes safe to show. May set `matched`."""
        text = self.decode(token)
        return text if self.num_output < self._min_tokens else self._match(text)

    def flush(self) -> str:
        """The rest of the text, at the end. A held-back character that never completed may set `matched`."""
        text = self._match(self._decoder.flush())
        return text if self._matcher is None or self.closed else text + self._matcher.flush()

    def _match(self, text: str) -> str:
        if self._matcher is None or not text:
            return text
        found = self._matcher.push(text)
        self.matched = found.matched
        return found.text

    def done(self, cause: Cause, now: float, message: str = "", matched: str | None = None) -> Done:
        """The terminal record when the scheduler's own is not there: a stop string, or the end of the detokenizer."""
        return Done(
            cause=cause,
            usage=Usage(self._num_prompt, self.num_output, self._cached_tokens),
            timing=structs.replace(self._timing, ended=now),
            message=message,
            matched=matched,
        )

    def admit(self, admitted: Admitted) -> None:
        """Take over what the scheduler knows; an earlier first token stays the first."""
        self._cached_tokens = admitted.cached_tokens
        self._timing = structs.replace(admitted.timing, first_token=self._timing.first_token)

    def saw_first_token(self, now: float) -> None:
        self._timing = structs.replace(self._timing, first_token=now)

    def scores(self, token: int, scores: ScoreLists, index: int) -> tuple[TokenLogprob, ...]:
        """Entry `index` of a step's scores as the client's; empty where the request did not ask."""
        if self.num_rivals is None or math.isnan(scores.chosen[index]):
            return ()
        return (self._entry(token, scores, index),)

    def add_prompt_scores(self, scores: PromptLogprobs) -> None:
        """Scores of one prefill chunk; a chunk computed again after a retraction gives the same positions again."""
        if self._prompt_scores is None:
            return
        lists = ScoreLists.of(scores)
        for index in range(min(len(lists.chosen), self._num_prompt - scores.start - 1)):
            position = scores.start + 1 + index
            self._prompt_scores[position] = self._entry(int(self._prompt[position]), lists, index)

    def add_embedding(self, vector: NDArray[np.float32]) -> None:
        """The vector that the request wanted; it leaves with its end."""
        self.embedding = vector

    def take_prompt_scores(self) -> tuple[TokenLogprob, ...]:
        """The whole prompt's scores, once; nothing while some are missing (a request aborted in mid-prefill)."""
        if self._prompt_scores is None:
            return ()
        scores = tuple(entry for entry in self._prompt_scores if entry is not None)
        self._prompt_scores = None
        return scores if len(scores) == self._num_prompt else ()

    def _entry(self, token: int, scores: ScoreLists, index: int) -> TokenLogprob:
        count = self.num_rivals or 0
        text = self._vocabulary.token_text
        rivals = zip(scores.top_tokens[index][:count], scores.top[index][:count], strict=True)
        top = tuple([(rival, logprob, text(rival)) for rival, logprob in rivals])
        return TokenLogprob(token, scores.chosen[index], text(token), top, scores.ranks[index])


def _decoder(vocabulary: Vocabulary, options: TextOptions) -> Decoder:
    if not options.detokenize:
        return SilentDecoder()
    return decoder_for(vocabulary, options.skip_special_tokens, options.spaces_between_special_tokens)
