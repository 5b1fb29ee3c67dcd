"""What a client must get, from its own request alone: no scheduler, no neighbours, no memory to share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np

from pawl.actors.control.weights import SOURCES
from pawl.actors.messages.generate import TokenLogprob, Usage
from pawl.actors.text.ghost import ghost_vocabulary
from pawl.actors.text.incremental import decoder_for
from pawl.actors.text.stream import ScoreLists
from pawl.actors.text.vocabulary import Vocabulary
from pawl.build.grammars import Followed, words_of
from pawl.features.request import BAD_GRAMMAR
from pawl.gpu.alone import OneAtATime, steps_alone
from pawl.gpu.ghost.language import adapter_salt_of
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.grammars.base import GrammarBackend, Words
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.grammars.plain import Plain
from pawl.lifecycle.grammar import Grammar
from pawl.lifecycle.properties.grammar import Fold
from pawl.lifecycle.records import Started
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause
from pawl.lifecycle.step import PromptLogprobs, StepLogprobs
from pawl.lifecycle.weight_source import FromDisk
from pawl.loops.versions import DEFAULT_VERSION
from pawl.testing.parameters import parameters_of
from pawl.testing.shape import Shape
from pawl.testing.workload import Arrival

BROKEN = "\N{REPLACEMENT CHARACTER}"


class PropertyFailed(Exception):
    """A property does not hold in this run."""

    def __init__(self, name: str, explanation: str, request: int | None = None) -> None:
        concerned = "" if request is None else f", request {request}"
        super().__init__(f"{name}{concerned}: {explanation}")
        self.property = name
        self.request = request


Score: TypeAlias = tuple[int, float | None, tuple[tuple[int, float], ...], int | None]
"""A token, its log-probability, the likeliest tokens with theirs, and its rank, which a token of a prompt has."""


class Said(NamedTuple):
    """What a model says to a request that it has for itself, stopped by nothing."""

    tokens: tuple[int, ...]
    scores: tuple[Score, ...] = ()
    """Of these, where the request asked for them."""
    prompt_scores: tuple[Score, ...] = ()
    vector: tuple[float, ...] = ()
    """Of the prompt, where the request wants it."""


NOTHING = Said(())
DrawnBy: TypeAlias = tuple[tuple[str, int], ...]
"""(version of the weights, the first output token that they drew), in order; the last draws the rest."""
AS_STARTED: DrawnBy = ((DEFAULT_VERSION, 0),)


class Expected(NamedTuple):
    """The whole output of a request that nobody ends early."""

    tokens: tuple[int, ...]
    text: str
    cause: Cause
    start: int = 0
    """Characters of the text in which no stop string is looked for."""


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    """The ghost's, made once."""
    return ghost_vocabulary()


@lru_cache(maxsize=1)
def _words() -> Words:
    words = words_of(vocabulary())
    assert words is not None
    return words


@lru_cache(maxsize=1)
def _plain() -> GrammarBackend:
    backend = Plain(_words())
    # What is compiled is the same in every run.
    setattr(backend, "compile", lru_cache(maxsize=256)(backend.compile))  # noqa: B010
    return backend


def shown_of(tokens: Sequence[int]) -> str:
    """The text of these, as far as it is complete before more come."""
    decoder = decoder_for(vocabulary(), True, True)
    return "".join([decoder.push(token) for token in tokens])


def simulated_grammars() -> Grammars:
    """Of the ghost's vocabulary; nothing in it is held."""
    return Grammars(Plain.name, lambda words: _plain(), _words())


def simulated_fold(started: Started, grammar: Grammar) -> Fold:
    """`Begin` of simulated runs."""
    grammars = simulated_grammars()
    return Followed(grammars.get(grammar).matcher(), grammars.words)


def drawn_alone(
    runner: OneAtATime, arrival: Arrival, page_size: int, before: Said = NOTHING, count: int | None = None
) -> Said:
    """What the request asks for, its first `count` tokens, from a runner that it has for itself, one step after the
    other, and its adapter, if it has one, in slot 1. `before`: what other weights have said to it until then."""
    sampling, known = parameters_of(arrival), np.array((*arrival.prompt, *before.tokens), np.int32)
    tokens = list(before.tokens)
    scores, prompt_scores = list(before.scores), list(before.prompt_scores)
    num_output, num_prompt = sampling.max_new_tokens if count is None else count, len(arrival.prompt)
    num_new, vector = num_output - len(tokens), tuple[float, ...]()
    adapter = int(bool(arrival.adapter))
    if sampling.prompt_logprobs and not prompt_scores:
        prompt_scores.append((arrival.prompt[0], None, (), None))
    for result in steps_alone(runner, known, sampling, num_new, page_size, num_prompt, adapter):
        tokens += result.tokens.tolist()
        if result.logprobs is not None:
            scores += _scores(tokens[-1:], result.logprobs, arrival)
        for part in result.prompt_logprobs:
            prompt_scores += _scores(arrival.prompt[1:], part, arrival)
        for embedding in result.embeddings:
            vector = tuple(embedding.vector.tolist())
    return Said(tuple(tokens), tuple(scores), tuple(prompt_scores), vector)


def _scores(tokens: Sequence[int], scores: StepLogprobs | PromptLogprobs, arrival: Arrival) -> list[Score]:
    columns = zip(tokens, *ScoreLists.of(scores), strict=True)
    most = parameters_of(arrival).num_rivals or 0
    return [
        (token, chosen, tuple(zip(top[:most], of_top[:most], strict=True)), rank)
        for token, chosen, top, of_top, rank in columns
    ]


LIKELIEST = SamplingParameters(temperature=0.0, max_new_tokens=0)


def ghost_alone(arrival: Arrival, drawn_by: DrawnBy) -> Said:
    """What ghosts of these weights say to a request, one after the other."""
    plain = msgspec.structs.replace(parameters_of(arrival), stop_token_ids=(), max_new_tokens=0) == LIKELIEST
    if plain and drawn_by == AS_STARTED:
        salt = adapter_salt_of(arrival.adapter) if arrival.adapter else 0
        return Said(tuple(expected(arrival.prompt, arrival.max_new_tokens, salt)))
    if arrival.grammar == BAD_GRAMMAR and not arrival.embed:
        # It is never computed: all that is known of its prompt is that the first token has no score.
        alone = arrival.prompt_logprobs and len(arrival.prompt) == 1
        return Said((), (), ((arrival.prompt[0], None, (), None),) if alone else ())
    said, total = NOTHING, len(arrival.prompt) + arrival.max_new_tokens
    ends = [*(start for _, start in drawn_by[1:]), None]
    for (version, _), end in zip(drawn_by, ends, strict=True):
        ghost = Ghost(
            num_pages=1, page_size=total, num_slots=1, max_context=total, small=True, grammars=simulated_grammars()
        )
        ghost.stage(1, FromDisk(SOURCES[version]))
        ghost.swap(1)
        if arrival.adapter:
            ghost.load_adapter(1, arrival.adapter)
        said = drawn_alone(ghost, arrival, total, said, end)
    return said


class Expectations:
    """What clients must get from a model, given what it says to a request that has it for itself."""

    def __init__(self, alone: Callable[[Arrival, DrawnBy], Said]) -> None:
        """`alone`: all that a request asks for, as if it were the only one and nothing stopped it."""
        self.said = lru_cache(maxsize=4096)(alone)
        self.stop_strings = lru_cache(maxsize=4096)(self._stop_strings)
        self.whole_output = lru_cache(maxsize=4096)(self._whole_output)

    def alone(self, arrival: Arrival, drawn_by: DrawnBy = AS_STARTED) -> tuple[int, ...]:
        """All tokens that a request asks for."""
        return self.said(arrival, drawn_by).tokens

    def _stop_strings(self, arrival: Arrival) -> tuple[str, ...]:
        """Those that the request brings, and the text of the output token that is to stop it; not when that is no
        whole text of its own.

        Where the number of that token is even, the last character before it belongs to the stop string as well: then
        the string stands across two tokens.
        """
        if arrival.stop_after is None or arrival.embed:
            return arrival.stop
        tokens = self.alone(arrival)[: arrival.stop_after]
        before, text = vocabulary().decode(tokens[:-1]), vocabulary().decode(tokens)
        start = len(before) - 1 if arrival.stop_after % 2 == 0 else len(before)
        stop = text[max(start, 0) :]
        return (*arrival.stop, stop) if stop and BROKEN not in text else arrival.stop

    def _whole_output(self, arrival: Arrival, drawn_by: DrawnBy) -> Expected:
        """What the request gets when nobody ends it early."""
        if arrival.embed:
            return Expected((), "", Cause.EMBEDDED)
        tokens, cause = self.alone(arrival, drawn_by), Cause.LENGTH
        shown = len(tokens)
        sampling = parameters_of(arrival)
        for number, token in enumerate(tokens):
            if token in sampling.stop_token_ids:
                # A stop token is an output token and has no text.
                cause = Cause.EOS if token in sampling.eos_token_ids else Cause.STOP_TOKEN
                tokens, shown = tokens[: number + 1], number + arrival.include_stop
                break
        if arrival.silent:
            return Expected(tokens, "", cause)
        text, first = vocabulary().decode(tokens[:shown]), max(1, arrival.stop_from)
        stops, start = self.stop_strings(arrival), len(shown_of(tokens[: first - 1]))
        ends = [(at + len(stop), -len(stop)) for stop in stops if (at := text.find(stop, start)) >= 0]
        if not ends:
            return Expected(tokens, text, cause, start)
        end, minus_length = min(ends)
        parts = ((n, vocabulary().decode(tokens[:n])) for n in range(first, shown + 1))
        count = next(n for n, part in parts if any(part.find(stop, start) >= 0 for stop in stops))
        text = text[: end if arrival.include_stop else end + minus_length]
        return Expected(tokens[:count], text, Cause.STOP_STRING, start)

    def check_beginning(
        self, arrival: Arrival, drawn_by: DrawnBy, tokens: Sequence[int], text: str, request: int | None
    ) -> None:
        """Somebody ended the request early: it got a beginning of what it would have got. Raises PropertyFailed."""
        whole = self.whole_output(arrival, drawn_by)
        if tuple(tokens) != whole.tokens[: len(tokens)]:
            said = f"{list(tokens)} is not how {list(whole.tokens)} begins"
            raise PropertyFailed("schedule_equivalence", said, request)
        # What is left of a character when a text is cut shows as a broken one, and the beginning of a stop string that
        # was held back shows once nothing can complete it any more.
        shown = text.rstrip(BROKEN)
        if whole.text.startswith(shown):
            return
        stopped = any(stop in shown[whole.start :] for stop in self.stop_strings(arrival))
        if stopped or not vocabulary().decode(tokens).startswith(shown):
            raise PropertyFailed("stream_equals_result", f"{text!r} is not how {whole.text!r} begins", request)

    def check_whole(
        self, arrival: Arrival, drawn_by: DrawnBy, tokens: Sequence[int], text: str, cause: Cause, request: int | None
    ) -> None:
        """The request ended by itself: it got everything, and nothing after it. Raises PropertyFailed."""
        whole, stops = self.whole_output(arrival, drawn_by), self.stop_strings(arrival)
        if cause is not whole.cause:
            said = f"{text!r} ended with {cause}, but with stop strings {stops} it is {whole.text!r} and {whole.cause}"
            raise PropertyFailed("stop_semantics" if stops else "stream_equals_result", said, request)
        if tuple(tokens) != whole.tokens:
            name = "schedule_equivalence" if len(tokens) == len(whole.tokens) else "stream_equals_result"
            raise PropertyFailed(name, f"tokens {list(tokens)}, not {list(whole.tokens)}", request)
        if text != whole.text:
            raise PropertyFailed("stream_equals_result", f"text {text!r}, not {whole.text!r}", request)

    def check_scores(
        self,
        arrival: Arrival,
        drawn_by: DrawnBy,
        tokens: Sequence[TokenLogprob],
        prompt: Sequence[TokenLogprob],
        request: int | None,
        *,
        count: int,
        ended: bool,
    ) -> None:
        """Log-probabilities are those of the `count` tokens that the client has, and all of the prompt's, or none where
        the request has not `ended` by itself and has no token. Raises PropertyFailed."""
        said = self.said(arrival, drawn_by)
        due = ended or count > 0 or len(prompt) > 0
        for told, wanted in ((tokens, said.scores[:count]), (prompt, said.prompt_scores if due else ())):
            found = tuple((one.token, one.logprob, tuple([pair[:2] for pair in one.top]), one.rank) for one in told)
            if found != wanted:
                raise PropertyFailed("retraction_transparency", f"log-probabilities {found}, not {wanted}", request)

    def check_vectors(
        self, arrival: Arrival, drawn_by: DrawnBy, vectors: Sequence[Sequence[float]], request: int | None
    ) -> None:
        """What a request that has ended got: its own vector, once, and none where it wanted none. Raises
        PropertyFailed."""
        wanted = [self.said(arrival, drawn_by).vector] if arrival.embed else []
        if [tuple(vector) for vector in vectors] != wanted:
            raise PropertyFailed("embedded_once", f"vectors {list(vectors)}, not {wanted}", request)


def check_refusal(arrival: Arrival, shape: Shape, num_requests: int, cause: Cause, request: int | None) -> None:
    """A request is refused because it is too long, because others may wait already, or for its grammar. Raises
    PropertyFailed."""
    length, config = len(arrival.prompt) + arrival.max_new_tokens, shape.loop_config()
    reasons = {
        Cause.TOO_LONG: length > config.max_context,
        # The last token is computed by nobody.
        Cause.NEVER_FITS: max(len(arrival.prompt), length - 1) > config.num_pages * config.page_size,
        Cause.OVERLOADED: num_requests > min(shape.max_queued, shape.mailbox or num_requests),
        Cause.GRAMMAR: arrival.grammar == BAD_GRAMMAR,
    }
    if not reasons.get(cause, False):
        raise PropertyFailed("fault_isolation", f"it was refused for no reason: {cause}", request)


def check_usage(true: Usage, told: Usage, request: int | None) -> None:
    """What a client is told to have used is what it sent, what the cache had of that when it was first admitted, what
    it got, and how often it lost its memory meanwhile. Raises PropertyFailed."""
    if told != true or not 0 <= told.cached_tokens <= told.prompt_tokens:
        said = f"{told}, and {true} is true"
        raise PropertyFailed("retraction_transparency", said, request)


OF_THE_GHOST = Expectations(ghost_alone)
