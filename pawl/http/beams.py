"""Beam search: of each prompt the completions that are likeliest as wholes.

A search is made of ordinary requests for one token each, with its rivals' scores: one for every beam that still grows,
all of a step together. What beams have in common is in the prefix cache, so a step computes a part of a page for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise

import msgspec
from starlette.types import Send

from pawl.actors.gateway import Gateway
from pawl.actors.messages.generate import Done, Output, Submit, TextOptions, TokenLogprob
from pawl.actors.sampling import Limits
from pawl.actors.sink import Delta, Inbox
from pawl.actors.text.invalid import beyond_context
from pawl.http.echo import text_after
from pawl.http.errors import Problem, from_done, from_invalid
from pawl.http.info import Tokenization
from pawl.http.openai import most_rivals
from pawl.http.replies import Reply, WholeRenderer, in_turns
from pawl.http.schemas import ChatBody, CompletionBody
from pawl.http.streams import Again, RequestGroup
from pawl.lifecycle.request import MAX_TOP_LOGPROBS, SamplingParameters
from pawl.lifecycle.states import ABORT_CAUSES, Cause

MAX_WIDTH = MAX_TOP_LOGPROBS // 2
"""As many beams end in one step at the most; so of twice as many candidates enough go on."""

LEAST_TIMEOUT_S = 1e-3

DRAWING = ("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias")
WORDS = {"min_new_tokens": "min_tokens", "grammar": "a grammar", "prompt_logprobs": "to score the prompt"}
"""What else a search cannot honour, in a client's words."""


class Beam(msgspec.Struct, frozen=True):
    """A beginning of a completion."""

    score: float = 0.0
    """Log-probability of all its tokens together."""
    length: int = 0
    last: TokenLogprob | None = None
    """Its last token, as one of those that were likely there; None: it has no token."""
    version: str = ""
    """Of the weights that scored the last token."""
    before: Beam | None = None
    cause: Cause | None = None
    """Why it ended; None: it has not."""

    def grown(self, drawn: TokenLogprob, place: int, version: str) -> Beam:
        """With the rival at `place` of what was drawn after it."""
        token, logprob, text = drawn.top[place]
        entry = TokenLogprob(token, logprob, text, drawn.top, place + 1)
        return Beam(self.score + logprob, self.length + 1, entry, version, self)

    def ended(self, cause: Cause) -> Beam:
        return msgspec.structs.replace(self, cause=cause)

    def path(self) -> list[Beam]:
        """This beam after each of its tokens, from the first on."""
        path, beam = list[Beam](), self
        while beam.before is not None:
            path.append(beam)
            beam = beam.before
        return path[::-1]

    def tokens(self) -> tuple[int, ...]:
        return tuple(beam.last.token for beam in self.path() if beam.last is not None)


class BeamSearch:
    """The search for the completions of one prompt that have the most log-probability for a token, of those whose
    beginnings are always among the `width` likeliest."""

    def __init__(self, width: int, ends: Mapping[int, Cause], length_penalty: float) -> None:
        """`ends` are the tokens that end a completion. Scores are divided by the length to the power of
        `length_penalty`, without the token that ends it: above 0, long completions gain by it."""
        self._width = width
        self._ends = ends
        self._length_penalty = length_penalty
        self.live: Sequence[Beam] = (Beam(),)
        """Those that grow, of equal length, the likeliest first."""
        self.best: Sequence[Beam] = ()
        """Those that have ended, the best first; at most `width`."""

    def value(self, beam: Beam) -> float:
        """What beams that have ended are compared by."""
        length = beam.length - (beam.cause is not Cause.LENGTH)
        return beam.score / math.pow(max(length, 1), self._length_penalty)

    def advance(self, drawn: Sequence[tuple[TokenLogprob, str]], max_tokens: int) -> None:
        """Grow the live beams by one token each: `drawn` has what was drawn after each of them, with twice as many
        rivals as the width, and the version of the weights. No beam is to be longer than `max_tokens`."""
        grown = [
            beam.grown(entry, place, version)
            for beam, (entry, version) in zip(self.live, drawn, strict=True)
            for place in range(min(2 * self._width, len(entry.top)))
        ]
        grown.sort(key=lambda beam: -beam.score)
        going, ended = list[Beam](), list(self.best)
        for beam in grown:
            assert beam.last is not None
            cause = self._ends.get(beam.last.token)
            if cause is not None:
                ended.append(beam.ended(cause))
            elif beam.length == max_tokens:
                ended.append(beam.ended(Cause.LENGTH))
            else:
                going.append(beam)
        self.best = sorted(ended, key=lambda beam: -self.value(beam))[: self._width]
        self.live = () if self._is_settled(going, max_tokens) else going[: self._width]

    def _is_settled(self, going: Sequence[Beam], max_tokens: int) -> bool:
        """Whether nothing that goes on can become better than the best that have ended: no token adds to a score."""
        if not going or len(self.best) < self._width:
            return not going
        likeliest = going[0]
        lengths = (max(likeliest.length, 1), max_tokens)
        most = max(likeliest.score / math.pow(length, self._length_penalty) for length in lengths)
        return most <= self.value(self.best[-1])


@dataclass(frozen=True)
class Beams:
    """What a call asks of its searches."""

    width: int
    length_penalty: float
    rivals: int
    """Scores of each token: those that the search looks at, or those that the client sees."""


def beams_of(body: CompletionBody | ChatBody, submits: Sequence[Submit]) -> Beams | None:
    """The search that a call asks for; None: it asks for none. Refuses what a search cannot honour."""
    if not body.use_beam_search:
        if body.length_penalty is not None and body.length_penalty != 1.0:
            raise Problem(400, "length_penalty needs use_beam_search to be true", param="length_penalty")
        return None
    width, sampling = body.n or 1, submits[0].sampling
    if width > MAX_WIDTH:
        raise Problem(400, f"n must be at most {MAX_WIDTH} when use_beam_search is true", param="n")
    if sampling.max_new_tokens == 0:
        raise Problem(400, "max_tokens must be at least 1 when use_beam_search is true", param="max_tokens")
    given = ("stream", "stop", "best_of", "bootstrap_room")
    names = [name for name in given if getattr(body, name, None)]
    names += [name for name in (*DRAWING, *WORDS) if getattr(sampling, name) != getattr(SamplingParameters(), name)]
    if body.spaces_between_special_tokens is False:
        names.append("spaces_between_special_tokens")
    if names:
        text = f"{WORDS.get(names[0], names[0])} is not possible when use_beam_search is true"
        raise Problem(400, text, param=names[0] if names[0] not in WORDS else "use_beam_search")
    penalty = 1.0 if body.length_penalty is None else body.length_penalty
    return Beams(width, penalty, most_rivals(2 * width, sampling.top_logprobs) or 0)


class _Search:
    """The search of one prompt: the requests of its next step, and what comes of them."""

    def __init__(self, asked: Submit, beams: Beams, limits: Limits) -> None:
        sampling = asked.sampling
        eos = frozenset(sampling.eos_token_ids)
        ends = {token: Cause.EOS if token in eos else Cause.STOP_TOKEN for token in sampling.stop_token_ids}
        self._asked = asked
        self._limits = limits
        self._search = BeamSearch(beams.width, ends, beams.length_penalty)
        self._sampling = msgspec.structs.replace(
            sampling, temperature=0.0, max_new_tokens=1, top_logprobs=min(beams.rivals, limits.vocabulary_size)
        )
        self._opened: tuple[Inbox, Done] | None = None
        self._prompt: tuple[int, ...] = ()
        self._max_tokens = sampling.max_new_tokens

    @property
    def num_live(self) -> int:
        """Requests of its next step; 0: it is over."""
        return len(self._search.live)

    def submits(self) -> list[Submit]:
        """Requests of the next step, one for each live beam."""
        options = msgspec.structs.replace(self._asked.text_options, return_prompt=True)
        if self._opened is None:
            return [self._request(text_options=options)]
        options = TextOptions(detokenize=False)
        return [
            self._request(text=None, chat=None, token_ids=(*self._prompt, *beam.tokens()), text_options=options)
            for beam in self._search.live
        ]

    def _request(self, **fields: object) -> Submit:
        return msgspec.structs.replace(self._asked, sampling=self._sampling, fill_context=False, **fields)

    def take(self, deltas: Sequence[Delta], inboxes: Sequence[Inbox]) -> None:
        """What the requests of `submits` said. Raises Problem where the prompt leaves no room for what is asked."""
        if self._opened is None:
            self._open(inboxes[0])
        drawn = [(delta.logprobs[0], inbox.version) for delta, inbox in zip(deltas, inboxes, strict=True)]
        self._search.advance(drawn, self._max_tokens)

    def _open(self, inbox: Inbox) -> None:
        assert inbox.accept is not None
        assert inbox.done is not None
        self._opened, self._prompt = (inbox, inbox.done), inbox.accept.prompt
        room = self._limits.context_length - len(self._prompt)
        if self._asked.fill_context:
            self._max_tokens = room
        elif self._max_tokens > room:
            raise from_invalid(beyond_context(self._limits.context_length, len(self._prompt), self._max_tokens))

    def results(self, tokenization: Tokenization) -> list[tuple[Delta, Inbox]]:
        """The best completions, as if each had come from one request."""
        return [self._told(beam, tokenization) for beam in self._search.best]

    def _told(self, beam: Beam, tokenization: Tokenization) -> tuple[Delta, Inbox]:
        assert self._opened is not None
        first, done = self._opened
        path, options = beam.path(), self._asked.text_options
        ends = beam.cause is not Cause.LENGTH
        shown = beam.tokens()[: -1 if ends and not options.include_stop else None]
        inbox = Inbox(whole=True)
        if first.accept is not None:
            inbox.accepted(first.accept)
        for step in path:
            assert step.last is not None
            logprobs = (step.last,) if self._asked.sampling.top_logprobs is not None else ()
            inbox.push(Output(0, "", (step.last.token,), logprobs, version=step.version))
        assert beam.cause is not None
        assert beam.last is not None
        usage = msgspec.structs.replace(done.usage, completion_tokens=beam.length)
        end = Done(beam.cause, usage, done.timing, matched=beam.last.token if ends else None)
        before = self._prompt if options.after_prompt else ()
        text = text_after(before, shown, tokenization, options.skip_special_tokens)
        inbox.push(Output(0, text, (), done=end))
        delta = inbox.take()
        assert delta is not None
        return delta, inbox


class BeamReply(Reply):
    """A reply that submits requests step by step, and answers with the best that was found."""

    def __init__(
        self,
        gateway: Gateway,
        submits: Sequence[Submit],
        renderer: WholeRenderer,
        beams: Beams,
        limits: Limits,
        tokenization: Tokenization,
        timeout_s: float,
        again: Again | None = None,
    ) -> None:
        """`submits` holds `beams.width` requests for each prompt, of which the first says what is asked. `timeout_s` is
        for all steps together, where the client sets no time."""
        super().__init__(gateway, submits, renderer, again)
        self._now = gateway.context.now
        self._timeout_s = submits[0].timeout_s or timeout_s
        self._deadline = 0.0
        self._searches = [_Search(asked, beams, limits) for asked in islice(submits, 0, None, beams.width)]
        self._tokenization = tokenization

    def _group(self) -> RequestGroup:
        self._deadline = self._now() + self._timeout_s
        submits = self._timed(search.submits() for search in self._searches)
        return RequestGroup(self._gateway, submits, whole=True, again=self._again)

    def _timed(self, submits: Iterable[Sequence[Submit]]) -> list[Submit]:
        """Requests of one step of all searches, which have what is left of the call's time."""
        left_s = max(self._deadline - self._now(), LEAST_TIMEOUT_S)
        return [msgspec.structs.replace(submit, timeout_s=left_s) for own in submits for submit in own]

    async def _answer(self, group: RequestGroup, send: Send) -> None:
        while (deltas := await self._ends(group)) is not None:
            await self._take(deltas, group.inboxes)
            submits = self._timed(await in_turns(self._searches, _Search.submits))
            if group.gone:
                return
            if not submits:
                told = await in_turns(self._searches, lambda search: search.results(self._tokenization))
                results = [result for own in told for result in own]
                await self._write([delta for delta, _ in results], [inbox for _, inbox in results], send)
                return
            group.submit(submits)

    async def _take(self, deltas: Sequence[Delta], inboxes: Sequence[Inbox]) -> None:
        for delta in deltas:
            if delta.done is not None and delta.done.cause in ABORT_CAUSES:
                raise self._renderer.problem(from_done(delta.done))  # without one of its beams a search has no answer
        places = list(pairwise(accumulate((search.num_live for search in self._searches), initial=0)))

        def take(part: tuple[_Search, tuple[int, int]]) -> None:
            search, (start, end) = part
            if end > start:
                search.take(deltas[start:end], inboxes[start:end])

        await in_turns(zip(self._searches, places, strict=True), take)
