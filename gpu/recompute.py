"""The words of recorded requests, computed again: not as they were, but in other batches, each request whole.

A request's prompt and output are one text here, cut into chunks beside those of other requests. All its tokens are
known, so they are inputs, and what the model would draw after each of them comes out. Nothing is cached.

This is right only for kernels that give a row the same bits in every batch and every chunk (docs/architecture.md, "What
may differ between runs"), and for those it says more than the same steps again would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np

from pawl.gpu.adapters.low_rank import PackedAdapter
from pawl.gpu.adapters.peft import read_adapter
from pawl.gpu.adapters.slots import ReadAdapter
from pawl.gpu.backend import ForwardInputs
from pawl.gpu.batches import known_tokens
from pawl.gpu.devices import Array, available_threads, computing_on, download, upload
from pawl.gpu.dtypes import Dtype
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.grammars.rows import GrammarRows, Ruled
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.native.build import sums_of
from pawl.gpu.pooling import Pooling, pooled
from pawl.gpu.ragged import ragged_offsets, ragged_positions
from pawl.gpu.sampling.operations import operations_on
from pawl.gpu.sampling.rivals import Rivals
from pawl.gpu.select import BackendChoice, sampler_for, select_backend
from pawl.gpu.step_runner import AdapterRefused
from pawl.gpu.weights.blocks import Weights
from pawl.lifecycle.recompute import Computed, Content, Recorded
from pawl.lifecycle.step import Embedding, Float32s, Int32s, SlotAssignment, StepLogprobs

PAGE_SIZE = 64
CHUNK = 256
"""Tokens of one forward pass at the most."""
MOST_LOGITS = 1 << 24
"""Numbers of one pass, so that a large vocabulary has shorter chunks."""
TOGETHER = 64
"""Requests that are computed together at the most."""
ADAPTERS = 8
"""That are kept for the next group; those of a group are there in any number."""

_NOTHING = np.zeros(0, np.int32)


class _Place(NamedTuple):
    """One row of logits: it says what follows the first `position` tokens of one request of its group."""

    request: int
    position: int


class Recomputer:
    """`Compute` of a real model. A store of its own, of one pool."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        max_context: int,
        dtype: Dtype,
        device: str = "cpu",
        backend: BackendChoice = "auto",
        threads: int | None = None,
        advance: Callable[[int], object] = lambda count: None,
        grammars: Grammars | None = None,
        pooling: Pooling | None = None,
        adapters: ReadAdapter = read_adapter,
        like: str = "",
    ) -> None:
        """Takes `weights` over. `max_context`: tokens of a request at the most; `advance` hears of tokens that are
        computed; `adapters` reads one; `like`: the processor (see `processor_of`) whose order of sums is wanted. Raises
        BackendUnavailable where nothing keeps the promise."""
        pages_per_slot = -(-max_context // PAGE_SIZE)
        # Where memory is not touched it costs nothing: room for several requests, if they are short.
        self._num_pages = max(pages_per_slot, TOGETHER)
        self._max_context = max_context
        self._table = np.zeros((TOGETHER, pages_per_slot), np.int32)
        self._vocabulary = config.vocab_size
        self._chunk = min(CHUNK, max(16, MOST_LOGITS // config.vocab_size))
        self._advance = advance
        self.kv = KvStore(config, num_pages=self._num_pages, page_size=PAGE_SIZE, dtype=dtype, device=device)
        threads = threads or available_threads()
        sums = sums_of(like) if like else None
        self.backend = select_backend(backend, config, weights, self.kv, threads=threads, deterministic=True, sums=sums)
        self._grammars = GrammarRows(grammars, TOGETHER)
        self._rivals = Rivals(TOGETHER)
        self._pooling = pooling
        self._operations = operations_on(self.backend.device)
        self._sampler = sampler_for(self.backend, config.vocab_size, self._chunk)
        self._config, self._read = config, adapters
        self._packed = lru_cache(ADAPTERS)(self._pack)
        self._adapters: list[PackedAdapter | None] = [None] * TOGETHER
        """Of the requests that are computed together."""

    def __call__(self, requests: Sequence[Recorded]) -> list[Computed | None]:
        """Raises ValueError for a request that is longer than any may be."""
        with computing_on(self.backend.device):
            at_hand = [each.adapter is None or self._packed(each.adapter) is not None for each in requests]
            computed = iter(self._computed([each for each, here in zip(requests, at_hand, strict=True) if here]))
            return [next(computed) if here else None for here in at_hand]

    def _pack(self, content: Content) -> PackedAdapter | None:
        """That adapter, as the backend has it; None where it cannot be read any more."""
        for source in content.sources:
            with suppress(AdapterRefused):
                adapter = self._read(source, self._config)
                if adapter.fingerprint == content.fingerprint:
                    return self.backend.pack_adapter(adapter)
        return None

    def _enter(self, group: Sequence[Recorded]) -> None:
        """These are computed together, each with its adapter."""
        self._adapters = [None if each.adapter is None else self._packed(each.adapter) for each in group]

    def _computed(self, requests: Sequence[Recorded]) -> list[Computed]:
        found: list[Computed] = []
        group: list[Recorded] = []
        num_pages = 0
        for request in requests:
            if request.sampling.embed:
                found += self._group(group) if group else []
                found.append(self._embedded(request))
                group, num_pages = [], 0
                continue
            if len(request.tokens) > self._max_context + 1:
                raise ValueError(f"a request of {len(request.tokens)} tokens in a context of {self._max_context}")
            pages = -(-len(request.tokens) // PAGE_SIZE)
            if group and (num_pages + pages > self._num_pages or len(group) == TOGETHER):
                found += self._group(group)
                group, num_pages = [], 0
            group.append(request)
            num_pages += pages
        return found + self._group(group) if group else found

    def _embedded(self, request: Recorded) -> Computed:
        """A request that wanted a vector, alone and in chunks of its own."""
        self._enter([request])
        computed, count = Computed.unknown(request), request.num_prompt
        rows: list[Float32s] = []
        self._table[0, : -(-count // PAGE_SIZE)] = np.arange(-(-count // PAGE_SIZE))
        for start in range(0, count, self._chunk):
            piece = request.tokens[start : min(start + self._chunk, count)]
            all_rows = np.arange(len(piece), dtype=np.int32)
            rows.append(download(self.backend.hidden(self._inputs([(0, start, len(piece))], piece, all_rows))).copy())
            self._advance(len(piece))
        if self._pooling is not None:
            vector = pooled(self._pooling, np.concatenate(rows))
            computed.digests.append(Embedding.of(0, vector).digest)
        return computed

    def _inputs(self, pieces: list[tuple[int, int, int]], tokens: Int32s, logit_rows: Int32s) -> ForwardInputs:
        """Of (slot, start, count) of several requests, whose tokens follow each other."""
        slots, starts, lengths = (np.array(column, np.int32) for column in zip(*pieces, strict=True))
        offsets = ragged_offsets(lengths)
        adapters = [self._adapters[slot] for slot in slots.tolist()]
        # What the model does not have is an input of nothing that counts: the token itself was not drawn either.
        tokens = np.where((tokens < 0) | (tokens >= self._vocabulary), np.int32(0), tokens)
        return ForwardInputs(
            tokens=upload(tokens.astype(np.int32), self.backend.device),
            positions=ragged_positions(starts, lengths, offsets),
            slots=slots,
            starts=starts,
            lengths=lengths,
            offsets=offsets,
            page_table=self._table,
            logit_rows=logit_rows,
            adapters=adapters if any(each is not None for each in adapters) else None,
        )

    def _group(self, group: list[Recorded]) -> list[Computed]:
        """Requests that fit into the store together."""
        self._enter(group)
        # The last token of each is an input of nothing.
        lengths = [len(request.tokens) - 1 for request in group]
        first = 0
        for slot, length in enumerate(lengths):
            count = -(-length // PAGE_SIZE)
            self._table[slot, :count] = np.arange(first, first + count)
            first += count
            self._rivals.admit(slot, group[slot].sampling)
        # One matcher for each request, which follows what was recorded from the beginning of its output.
        self._grammars.admit(
            [
                SlotAssignment(slot, request.sampling, request.num_prompt, request.tokens[: request.num_prompt], 0)
                for slot, request in enumerate(group)
            ]
        )
        found = [Computed.unknown(request) for request in group]
        starts = [0] * len(group)
        while any(start < length for start, length in zip(starts, lengths, strict=True)):
            room, pieces = self._chunk, list[tuple[int, int, int]]()
            for slot, start in enumerate(starts):
                count = min(lengths[slot] - start, room)
                if count > 0:
                    pieces.append((slot, start, count))
                    starts[slot] += count
                    room -= count
            self._pass(group, pieces, found)
            self._advance(self._chunk - room)
        return found

    def _pass(self, group: list[Recorded], pieces: list[tuple[int, int, int]], found: list[Computed]) -> None:
        """One forward pass over (slot, start, count) of several requests."""
        offsets = ragged_offsets(np.array([count for _, _, count in pieces], np.int32))
        tokens = np.concatenate([group[slot].tokens[start : start + count] for slot, start, count in pieces])
        rows, places = list[int](), list[_Place]()
        for (slot, start, count), offset in zip(pieces, offsets.tolist(), strict=False):
            for position in range(start + 1, start + count + 1):
                if position >= group[slot].num_prompt or group[slot].sampling.prompt_logprobs:
                    rows.append(offset + position - start - 1)
                    places.append(_Place(slot, position))
        logits = self.backend.forward(self._inputs(pieces, tokens, np.array(rows, np.int32)))
        drawn = [row for row, place in enumerate(places) if place.position >= group[place.request].num_prompt]
        if drawn:
            admissions = [
                self._admission(slot, group[places[row].request], places[row]) for slot, row in enumerate(drawn)
            ]
            ruled = self._rule(group, places, drawn, logits)
        self._score(group, places, logits, found)
        if drawn:
            self._draw(group, places, drawn, admissions, ruled, logits, found)

    def _score(self, group: list[Recorded], places: list[_Place], logits: Array, found: list[Computed]) -> None:
        """Log-probabilities of the recorded tokens, where somebody asked for them."""
        scored = [row for row, place in enumerate(places) if _scored(group[place.request], place.position)]
        if not scored:
            return
        recorded = np.array([group[places[row].request].tokens[places[row].position] for row in scored], np.int64)
        tokens = upload(np.clip(recorded, 0, self._vocabulary - 1), self.backend.device)
        rows = upload(np.array(scored, np.int64), self.backend.device)
        columns = self._rivals.columns(np.array([places[row].request for row in scored], np.int32))
        chosen, top_tokens, top = map(download, self._operations.score(logits[rows], tokens, columns).arrays())
        for index, row in enumerate(scored):
            here, place = slice(index, index + 1), places[row]
            one = StepLogprobs(chosen[here], top_tokens[here].astype(np.int32), top[here])
            found[place.request].score(np.array([place.position]), one)

    def _rule(self, group: list[Recorded], places: list[_Place], drawn: list[int], logits: Array) -> Ruled | None:
        """What grammars allow in the rows that are drawn, of each request in order; the others have no score any
        more."""
        rows, masks = list[int](), list[Int32s]()
        for index, row in enumerate(drawn):
            request, position = places[row]
            here = self._grammars.masks(np.array([request], np.int32))
            if here is not None:
                rows.append(index)
                masks.append(here.bits)
                here.accept(group[request].tokens[position : position + 1])
        if not rows:
            return None
        ruled = Ruled(np.array(rows, np.int32), (), np.concatenate(masks))
        self._operations.apply_masks(logits, ruled.moved(np.array(drawn, np.int32)[ruled.rows]))
        return ruled

    def _draw(
        self,
        group: list[Recorded],
        places: list[_Place],
        drawn: list[int],
        admissions: list[SlotAssignment],
        ruled: Ruled | None,
        logits: Array,
        found: list[Computed],
    ) -> None:
        """The tokens that follow, each as if its row were a request that has got so far."""
        self._sampler.admit(admissions)
        slots = np.arange(len(drawn), dtype=np.int32)
        positions = np.array([places[row].position for row in drawn], np.int32)
        rows = upload(np.array(drawn, np.int64), self.backend.device)
        tokens = download(self._sampler.sample(logits[rows], slots, positions, ruled).tokens)
        for row, token in zip(drawn, tokens.tolist(), strict=True):
            request = group[places[row].request]
            found[places[row].request].tokens[places[row].position - request.num_prompt] = token

    def _admission(self, slot: int, request: Recorded, place: _Place) -> SlotAssignment:
        sampling, count = request.sampling, request.num_prompt
        history = request.tokens[: place.position] if sampling.penalised else _NOTHING
        # Scores are of tokens that are known: the sampler need not look for any.
        sampling = msgspec.structs.replace(sampling, top_logprobs=None)
        admission = SlotAssignment(slot, sampling, count, history, place.position - count)
        return known_tokens(admission, self._vocabulary)


def _scored(request: Recorded, position: int) -> bool:
    """Whether the request asked for the log-probability of its token there."""
    if position < request.num_prompt:
        return request.sampling.prompt_logprobs
    return request.sampling.top_logprobs is not None
