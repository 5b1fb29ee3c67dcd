"""The runner: executes StepBatches on one device, in the order they are launched.

It keeps what the scheduler does not send again: the page table, each slot's sampling parameters, and each slot's last
token, so that the next step can be launched before this one's tokens are known on the host.

    launch   page tables, admissions -> tokens resolved -> forward -> prompt scores -> draw    (returns at once on CUDA)
    collect  wait, copy the results to the host

Only a step that draws for requests with grammars waits for the step before it: its forward is under way by then, and
its masks are made when the tokens before them are known. A step with runs waits for itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from pawl.gpu.adapters.peft import read_adapter
from pawl.gpu.adapters.slots import AdapterSlots, ReadAdapter
from pawl.gpu.backend import Backend, ForwardInputs, GreedyBackend
from pawl.gpu.batches import check_batch, part_of, within_vocabulary
from pawl.gpu.changes import Changes
from pawl.gpu.devices import Array, available_threads, computing_on, download, upload
from pawl.gpu.dtypes import BFLOAT16, Dtype
from pawl.gpu.expert_counts import ExpertCounts
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.grammars.rows import GrammarRows, Ruled
from pawl.gpu.kv import KvStore
from pawl.gpu.launched import Launched, OutOfOrder, all_arrays
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.occupancy import Occupancy
from pawl.gpu.pooling import Part, Pooler, Pooling, abilities_of
from pawl.gpu.ragged import ragged_offsets, ragged_positions
from pawl.gpu.rounds import Round, Rows, draw_in_rounds, has_runs, look_up, rows_that_may_draw
from pawl.gpu.sampling.draws import Draws, PromptScores
from pawl.gpu.sampling.scoring import PromptScorer
from pawl.gpu.select import BackendChoice, copies_from, last_tokens_for, sampler_for, select_backend
from pawl.gpu.updates import Updates, Version
from pawl.gpu.weights.blocks import Blocks, Weight, Weights
from pawl.gpu.weights.fingerprint import weights_fingerprint
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.step import Bools, Int32s, StepBatch, StepResult
from pawl.memory.partners import NO_PAGE

if TYPE_CHECKING:
    import torch

    from pawl.gpu.cuda.graphs import DecodeGraphs
    from pawl.gpu.parallel.rank import Rank

log = structlog.get_logger("pawl.gpu.runner")


class Runner(Occupancy):
    """One model on one device."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        num_pages: int,
        page_size: int,
        num_slots: int,
        max_context: int,
        device: torch.device | str = "cpu",
        dtype: Dtype = BFLOAT16,
        threads: int | None = None,
        backend: BackendChoice = "auto",
        num_window_pages: int | None = None,
        deterministic: bool = False,
        grammars: Grammars | None = None,
        pooling: Pooling | None = None,
        adapters: ReadAdapter = read_adapter,
        rank: Rank | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """Takes `weights` over (canonical names, from `pawl.gpu.weights.source.load_weights` with the same `dtype`).
        With `rank` they are those of its shard of the model, and `fingerprint` is that of all of them.
        `max_context` is the most tokens a slot may hold; `threads` None means one for each processor. With
        `num_window_pages`, the windowed layers of a hybrid model have a store of their own, and every batch names
        window pages. `deterministic`: a request's bits must not depend on what it is scheduled with.
        `grammars` are those that requests may have; `pooling` makes vectors of prompts; `adapters` reads one. Raises
        BackendUnavailable, also where that promise cannot be kept, or ValueError when the model is not hybrid then.
        """
        self.config, self.num_slots, self.max_context = config, num_slots, max_context
        shard, own = (None, config) if rank is None else (rank.shard, rank.shard.config)
        kinds: Any = {"dtype": dtype, "device": device}
        self.kv = KvStore(own, num_pages=num_pages, page_size=page_size, num_window_pages=num_window_pages, **kinds)
        fingerprint = fingerprint or weights_fingerprint(config, weights)
        kinds = {"threads": threads or available_threads(), "deterministic": deterministic}
        make: Callable[..., Backend] = partial(select_backend, config=own, kv=self.kv, **kinds)
        in_blocks = any(isinstance(weight, Blocks) for weight in weights.values())
        serving = Version(make(backend, weights=weights, rank=rank), fingerprint)
        self._keep(Updates(config, dtype, partial(make, serving.backend.name), serving, rank, in_blocks=in_blocks))
        self.device, self.depth = serving.backend.device, int(not self.kv.full.on_host)
        self.layout = f"{self.kv.layout} {self.backend.name} {fingerprint}"
        """See `StepRunner.layout`. Other weights give other keys and values, another backend other last bits."""
        self.sampler = sampler_for(self.backend, config.vocab_size, num_slots)
        self.experts = None if own.experts is None else ExpertCounts(own.experts, self.device)
        self.scorer, self.pooler = PromptScorer(num_slots, self.device), Pooler(num_slots, pooling)
        self.abilities = abilities_of(pooling, config.hidden_size)
        self._grammars = GrammarRows(grammars, num_slots)
        self._adapters = AdapterSlots(config, num_slots, adapters, shard)
        self._of_slots = (self.sampler, self.scorer, self._grammars, self.pooler, self._adapters)
        """Who keeps something for each slot."""
        self.page_table = np.zeros((num_slots, -(-max_context // page_size)), np.int32)
        self.window_table = None if num_window_pages is None else np.full_like(self.page_table, NO_PAGE)
        self._last_tokens = last_tokens_for(self.backend, num_slots, rank)
        self._draws = shard is None or shard.last
        self._copies, self._changes = copies_from(self.device), Changes()
        self._graphs: DecodeGraphs | None = None
        self._in_flight: deque[Launched] = deque()
        self._spoiled = np.zeros(num_slots, np.bool_)
        """Slots whose request named tokens that the model does not have: what it draws is no token."""

    # ---- before the first step ----

    def resize(self, num_pages: int, num_window_pages: int | None) -> None:
        """Other numbers of pages; what they held is gone. Raises ValueError once there are graphs, which hold addresses
        of pages, and for the compiled CPU kernels, which do so too."""
        if self._graphs is not None or self.backend.name == "native":
            raise ValueError("pages cannot move any more")
        self.kv.resize(num_pages, num_window_pages)
        self.reset()

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers. Raises PagesNotPortable when there are two stores."""
        return self.kv.page_bytes

    def read_pages(self, pages: Int32s) -> NDArray[np.uint8]:
        """See `StepRunner.read_pages` and `KvStore.read`. Raises RefusedInputs while pages are released."""
        self._require(MemoryTag.KV_CACHE)
        with computing_on(self.device):
            return self.kv.read(pages)

    def write_pages(self, pages: Int32s, blocks: NDArray[np.uint8]) -> None:
        """See `StepRunner.write_pages` and `KvStore.write`. Raises RefusedInputs while pages are released."""
        self._require(MemoryTag.KV_CACHE)
        with computing_on(self.device):
            self.kv.write(pages, blocks)

    def named_weights(self) -> Mapping[str, Weight]:
        """See `StepRunner.named_weights`."""
        return self.updates.named_weights()

    def load_adapter(self, slot: int, source: str) -> str:
        """See `StepRunner.load_adapter`."""
        return self._adapters.load(slot, source, self.backend.pack_adapter)

    def unload_adapter(self, slot: int) -> None:
        """See `StepRunner.unload_adapter`."""
        self._adapters.unload(slot)

    def reset(self) -> None:
        """Forget every slot and every step in flight; pages keep their bytes, which mean nothing any more."""
        self.page_table[:] = 0
        if self.window_table is not None:
            self.window_table[:] = NO_PAGE
        for part in (*self._of_slots, self._last_tokens, self._changes):
            part.reset()
        self._in_flight.clear()
        self._spoiled[:] = False

    def launch(self, batch: StepBatch) -> Launched:
        """Start a step. Raises InvalidBatch before anything has changed, and RefusedInputs while weights or pages are
        released, or when a row would read a window page that is not there: then only a `reset` gives the slots a
        meaning again."""
        self._require(MemoryTag.WEIGHTS, MemoryTag.KV_CACHE)
        with computing_on(self.device):
            return self._launch(self._entered(batch))

    def _entered(self, batch: StepBatch) -> StepBatch:
        """Newcomers and pages have their places; tokens are those that the model has."""
        check_batch(
            batch,
            num_slots=self.num_slots,
            num_pages=self.kv.num_pages,
            pages_per_slot=self.page_table.shape[1],
            max_context=self.max_context,
            num_window_pages=self.kv.num_window_pages,
        )
        self._adapters.check(batch)
        batch, foreign = within_vocabulary(batch, self.config.vocab_size)
        self._spoiled[[admission.slot for admission in batch.admitted]] = False
        if len(foreign):
            log.warning("requests name tokens that the model does not have", step=batch.step, slots=foreign.tolist())
            self._spoiled[foreign] = True
        self.page_table[batch.page_slots, batch.page_indices] = batch.pages
        if self.window_table is not None and batch.window_pages is not None:
            self.window_table[batch.page_slots, batch.page_indices] = batch.window_pages
        self.kv.reached(batch.pages, batch.window_pages)
        self._changes.add(batch)
        for part in self._of_slots:
            part.admit(batch.admitted)
        return batch

    def _launch(self, batch: StepBatch) -> Launched:
        parts, hidden, embeds = tuple[Part, ...](), list[Array](), self.pooler.wanted(batch)
        if not self._draws:
            return self._pass_on(batch, embeds)
        if embeds.any():
            own, batch = part_of(batch, embeds), part_of(batch, ~embeds)
            parts = self.pooler.parts(own, self._spoiled)
            offsets = ragged_offsets(own.lengths)
            # A forward of its own, which has no head.
            hidden = [self.backend.hidden(self._inputs(own, offsets, self.pooler.rows(parts, offsets)))]
        runs = self._compute_runs(batch) if has_runs(batch) else None
        draws, prompt_scores, ruled = self._compute(batch) if runs is None else (Draws.none(self.device), (), None)
        pending = self._copies.start(all_arrays(draws, prompt_scores, hidden))
        launched = Launched(batch.step, draws, prompt_scores, pending, ruled, parts, runs)
        self._in_flight.append(launched)
        return launched

    def _pass_on(self, batch: StepBatch, embeds: Bools) -> Launched:
        """A stage before the last: the next one gets the rows of the same forward passes, and the last one draws."""
        for part in (part_of(batch, embeds), part_of(batch, ~embeds)):
            if len(part.slots):
                self.backend.forward(self._inputs(part, ragged_offsets(part.lengths), np.empty(0, np.int32)))
                self._last_tokens.expect(part.slots[part.samples])
        self._in_flight.append(Launched.elsewhere(batch.step, Draws.none(self.device)))
        return self._in_flight[-1]

    def _compute(self, batch: StepBatch) -> tuple[Draws, tuple[PromptScores, ...], Ruled | None]:
        sampled_slots = batch.slots[batch.samples]
        if not len(batch.slots):
            return Draws.none(self.device), (), None
        offsets = ragged_offsets(batch.lengths)
        sampled_rows = (offsets[1:] - 1)[batch.samples]
        scored = self.scorer.segments(batch)
        logit_rows = self.scorer.add_rows(scored, offsets, sampled_rows)
        inputs = self._inputs(batch, offsets, logit_rows)
        draws, prompt_scores = Draws.none(self.device), tuple[PromptScores, ...]()
        ruled: Ruled | None = None
        greedy = self._greedy_backend
        if greedy and len(sampled_slots) and not len(scored) and self._plainly_greedy(greedy, sampled_slots):
            ruled = self._masks(sampled_slots)
            if ruled is not None:
                inputs = replace(inputs, masks=ruled.spread(len(sampled_slots)))
            draws = Draws.greedy(greedy.forward_greedy(inputs))
            self.sampler.record_greedy(sampled_slots)
        else:
            logits = self.backend.forward(inputs)
            prompt_scores = self.scorer.score(batch, scored, inputs, logits)
            if len(sampled_slots):
                if len(logit_rows) != len(sampled_rows):
                    logits = logits[upload(np.searchsorted(logit_rows, sampled_rows), self.device)]
                ruled = self._masks(sampled_slots)
                positions = (batch.starts + batch.lengths)[batch.samples]
                draws = self.sampler.sample(logits, sampled_slots, positions, ruled)
        if (spoiled := self._spoiled[sampled_slots]).any():
            draws = replace(draws, usable=draws.usable & upload(~spoiled, self.device))
        self.scorer.sampled(sampled_slots)
        self._last_tokens.remember(sampled_slots, draws.tokens)
        return draws, prompt_scores, ruled

    def _inputs(self, batch: StepBatch, offsets: Int32s, logit_rows: Int32s) -> ForwardInputs:
        return ForwardInputs(
            tokens=self._last_tokens.resolve(batch, offsets),
            positions=ragged_positions(batch.starts, batch.lengths, offsets),
            slots=batch.slots,
            starts=batch.starts,
            lengths=batch.lengths,
            offsets=offsets,
            page_table=self.page_table,
            logit_rows=logit_rows,
            window_table=self.window_table,
            changed=self._changes.take(),
            adapters=self._adapters.of(batch.slots),
            expert_counts=None if self.experts is None else self.experts.counts,
        )

    def _compute_runs(self, batch: StepBatch) -> StepResult:
        """A step with runs: one forward pass over all drafts, then round after round of drawing."""
        offsets, slots = ragged_offsets(batch.lengths), batch.slots[batch.samples]
        scored = self.scorer.segments(batch)
        logit_rows = self.scorer.add_rows(scored, offsets, rows_that_may_draw(batch, offsets))
        inputs = self._inputs(batch, offsets, logit_rows)
        fused, prompt_scores = self._greedy_backend, tuple[PromptScores, ...]()
        if fused and not len(scored) and self.sampler.plainly_greedy(slots) and not self._grammars.any(slots):
            likeliest = Draws.greedy(fused.forward_greedy(inputs))
            chosen = Round(download(likeliest.tokens).astype(np.int32), unusable=likeliest.unusable())
            result, counts = draw_in_rounds(batch, offsets, partial(look_up, chosen, logit_rows))
            self.sampler.record_greedy(slots, counts[batch.samples])
        else:
            logits = self.backend.forward(inputs)
            prompt_scores = self.scorer.score(batch, scored, inputs, logits)
            result, counts = draw_in_rounds(batch, offsets, partial(self._draw_round, logits, logit_rows))
        self.scorer.sampled(slots)
        self._last_tokens.remember(slots, upload(result.last.astype(np.int64), self.device))
        if (spoiled := self._spoiled[slots]).any():
            marks = np.repeat(spoiled, counts[batch.samples])
            unusable = marks if result.unusable is None else marks | result.unusable
            result = msgspec.structs.replace(result, unusable=unusable)
        return msgspec.structs.replace(result, prompt_logprobs=tuple(part.collect() for part in prompt_scores))

    def _draw_round(self, logits: Array, logit_rows: Int32s, where: Rows) -> Round:
        """One token for each of these rows, as a step of its own would draw it."""
        rows, ruled = np.searchsorted(logit_rows, where.rows), self._masks(where.slots)
        draws = self.sampler.sample(logits[upload(rows, self.device)], where.slots, where.positions, ruled)
        tokens = download(draws.tokens).astype(np.int32)
        return Round(tokens, draws.logprobs(), draws.unusable(), None if ruled is None else ruled.accept(tokens))

    def _plainly_greedy(self, backend: GreedyBackend, slots: Int32s) -> bool:
        """Whether the backend's head can choose for all of these."""
        return self.sampler.plainly_greedy(slots) and (backend.greedy_masks or not self._grammars.any(slots))

    def _masks(self, slots: Int32s) -> Ruled | None:
        """What grammars allow for the next tokens of `slots`, as all tokens drawn before leave them."""
        if not self._grammars.any(slots):
            return None
        for earlier in self._in_flight:
            self._arrived(earlier)
        return self._grammars.masks(slots)

    def _arrived(self, launched: Launched) -> list[Array]:
        """Wait for a step's results; its tokens are accepted as soon as somebody has waited for them."""
        if launched.arrived is None:
            launched.arrived = launched.pending.wait()
            if launched.ruled is not None:
                launched.refused = launched.ruled.accept(download(launched.arrived[0]))
        return launched.arrived

    def collect(self, launched: Launched) -> StepResult:
        """Wait for the oldest step in flight. Raises OutOfOrder for any other."""
        oldest = self._in_flight[0].step if self._in_flight else None
        if launched.step != oldest:
            raise OutOfOrder(launched.step, oldest)
        self._in_flight.popleft()
        with computing_on(self.device):
            return launched.result(self._arrived(launched), self.pooler)
