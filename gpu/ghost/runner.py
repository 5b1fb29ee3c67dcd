"""A runner without a model: what it says is a hash of what it read, so it sees whether memory is right.

Each position that is computed writes an entry that stands for the whole sequence up to it. Each segment then reads
every entry of its row through the page table, as attention would, and the next token is a pure function of what was
read. So it can be known from the prompt alone (`pawl.gpu.ghost.oracle`), under any schedule.

    write    entries of the new positions, into the pages of each row (and into its window pages)
    read     every page of each row, up to its last position (and every window page that a window reaches)
    check    what was read against what the slot has written, or, for a prefix from the cache, against itself
    draw     the next token

A page that is somebody else's, stale, lost, swapped or freed too early raises GhostFault; nothing is ever repaired.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from pawl.gpu.batches import InvalidBatch, check_batch, within_vocabulary
from pawl.gpu.ghost.draws import GhostDraws
from pawl.gpu.ghost.embedding import VECTOR_SIZE, GhostEmbeddings
from pawl.gpu.ghost.language import VOCABULARY_SIZE, adapter_salt_of, likeliest
from pawl.gpu.ghost.memory import Computed, GhostFault, GhostMemory
from pawl.gpu.ghost.small import SmallMemory, likeliest_after
from pawl.gpu.ghost.store import GhostStore
from pawl.gpu.ghost.weights import GhostUpdates, check
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.ragged import ragged_offsets, with_chained
from pawl.gpu.rounds import Round, Rows, draw_in_rounds, has_runs
from pawl.gpu.step_runner import Abilities, AdapterRefused, NotShared
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import Bools, Int32s, SlotAssignment, StepBatch, StepResult
from pawl.lifecycle.weight_group import TensorSpec
from pawl.lifecycle.weight_source import WeightSource

_NOTHING = -1
"""Last token of a slot that has drawn none."""
NOTHING_DRAWN = "the slot has drawn no token to go on with"


class PlannedFailure(RuntimeError):
    """The ghost was told to fail at this step."""

    def __init__(self, step: int) -> None:
        super().__init__(f"step {step}: the ghost was told to fail")
        self.step = step


class Shape(Protocol):
    """What a ghost must know of a scheduler's configuration."""

    @property
    def num_pages(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def max_running(self) -> int: ...
    @property
    def max_context(self) -> int: ...
    @property
    def window(self) -> int | None: ...
    @property
    def num_window_pages(self) -> int | None: ...


class Ghost(NotShared):
    """One ghost; made as `pawl.gpu.runner.Runner` is, and as deaf to anything but batches."""

    depth = 0
    experts = None
    abilities = Abilities(vector_size=VECTOR_SIZE, unit_vectors=True)

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        num_slots: int,
        max_context: int,
        window: int | None = None,
        num_window_pages: int | None = None,
        small: bool = False,
        grammars: Grammars | None = None,
    ) -> None:
        """`window` tokens are read through window pages as well, of which there are `num_window_pages`. Nothing
        waits. `grammars` are those that requests may have.

        `small`: quicker for steps of a few tokens, slower for others; without window pages, and none can be copied.
        Raises ValueError where a small one should have a window."""
        self.num_slots = num_slots
        self.max_context = max_context
        sizes = {
            "num_pages": num_pages,
            "page_size": page_size,
            "num_slots": num_slots,
            "max_context": max_context,
        }
        if small and window is not None:
            raise ValueError("a small ghost has no window pages")
        self.memory: GhostMemory = (
            SmallMemory(**sizes) if small else GhostMemory(**sizes, window=window, num_window_pages=num_window_pages)
        )
        self.fail_at: set[int] = set()
        """Steps at which `launch` raises PlannedFailure, each once."""
        self.faults: list[GhostFault] = []
        """All that were raised: a worker that is reset goes on, but this stays."""
        self._updates = GhostUpdates()
        self.released: set[MemoryTag] = set()
        self._draws = GhostDraws(num_slots, grammars)
        self._embeddings = GhostEmbeddings(num_slots)
        self._last = np.full(num_slots, _NOTHING, np.int32)
        """The token each slot drew last."""
        self._special = np.zeros(num_slots, np.bool_)
        """Slots that want more than the likeliest token."""

    @classmethod
    def for_shape(cls, shape: Shape, *, small: bool = False, grammars: Grammars | None = None) -> Self:
        """The worker that a scheduler of this shape needs; `small` where it may be."""
        return cls(
            num_pages=shape.num_pages,
            page_size=shape.page_size,
            num_slots=shape.max_running,
            max_context=shape.max_context,
            window=shape.window,
            num_window_pages=shape.num_window_pages,
            small=small and shape.window is None,
            grammars=grammars,
        )

    # ---- pages that come and go ----

    @property
    def layout(self) -> str:
        """Says how the bytes of a page are to be read."""
        return f"ghost {self.memory.page_size}x2 uint64"

    @property
    def page_bytes(self) -> int:
        return self._stores.store.page_bytes

    @property
    def _stores(self) -> GhostMemory:
        if isinstance(self.memory, SmallMemory):
            raise ValueError("a small ghost has no pages of bytes")
        return self.memory

    def read_pages(self, pages: Int32s) -> NDArray[np.uint8]:
        """Copies of `pages`, uint8 [n, page_bytes]. Raises ValueError where there is a window store: a page would be
        half of what its tokens have."""
        return self._only_store().read(pages)

    def write_pages(self, pages: Int32s, blocks: NDArray[np.uint8]) -> None:
        """The inverse of `read_pages`. Raises ValueError, with nothing written."""
        self._only_store().fill(pages, blocks)

    def _only_store(self) -> GhostStore:
        if self._stores.window_store is not None:
            raise ValueError("pages of a ghost with a window store cannot be copied out or in")
        return self._stores.store

    def corrupt(self, page: int, offset: int = 0, *, in_window: bool = False) -> None:
        """Flip a bit of an entry, as failing memory would."""
        store = self._stores.window_store if in_window else self._stores.store
        if store is None:
            raise ValueError("there is no window store")
        store.data[page, offset, 1] ^= np.uint64(1)
        store.refresh(np.array([page], np.int32))

    # ---- the runner ----

    def stage(self, ticket: int, source: WeightSource, *, last: bool = True) -> str:
        """See `StepRunner.stage`."""
        return self._updates.stage(ticket, source, last)

    def expect(self, specs: Sequence[TensorSpec]) -> None:
        """See `StepRunner.expect`."""
        for spec in specs:
            check(spec.name, spec.dtype, spec.shape)

    def swap(self, ticket: int) -> None:
        """See `StepRunner.swap`."""
        self.memory.exchange(self._updates.take(ticket).salt)
        self.released.discard(MemoryTag.WEIGHTS)

    def named_weights(self) -> Mapping[str, Any]:
        """See `StepRunner.named_weights`."""
        return self._updates.serving.tensors

    def load_adapter(self, slot: int, source: str) -> str:
        """See `StepRunner.load_adapter`: a ghost's adapters are names as well."""
        self.memory.place(slot, None)
        if MemoryTag.WEIGHTS in self.released:
            raise AdapterRefused("the weights that it goes with are released")
        self.memory.place(slot, adapter_salt_of(source))
        return source

    def unload_adapter(self, slot: int) -> None:
        """See `StepRunner.unload_adapter`."""
        self.memory.place(slot, None)

    def release(self, tags: Collection[MemoryTag]) -> None:
        """See `StepRunner.release`. What pages held is gone."""
        self.released.update(tags)
        if MemoryTag.KV_CACHE in self.released:
            self.memory.clear()

    def resume(self, tags: Collection[MemoryTag]) -> None:
        """See `StepRunner.resume`."""
        self.released.difference_update(tags)

    def reset(self) -> None:
        """Forget every slot and every page. What is read from now on must have been written since."""
        self.memory.clear()
        self._last[:] = _NOTHING
        self._special[:] = False
        self._draws.reset()
        self._embeddings.reset()

    def launch(self, batch: StepBatch) -> StepResult:
        """Compute a step. Raises InvalidBatch before anything has changed; PlannedFailure; or GhostFault, after which
        only a `reset` gives the slots a meaning again."""
        check_batch(
            batch,
            num_slots=self.num_slots,
            num_pages=self.memory.num_pages,
            pages_per_slot=self.memory.pages_per_slot,
            max_context=self.max_context,
            num_window_pages=self.memory.num_window_pages,
        )
        if len(within_vocabulary(batch, VOCABULARY_SIZE)[1]):
            raise InvalidBatch(batch.step, "a token is not in the ghost's vocabulary")
        if self.released:
            self.faults.append(GhostFault(batch.step, 0, 0, f"{', '.join(sorted(self.released))} is released"))
            raise self.faults[-1]
        if batch.step in self.fail_at:
            self.fail_at.discard(batch.step)
            raise PlannedFailure(batch.step)
        try:
            self.memory.take(batch)
            if batch.admitted:
                self._admit(batch.admitted)
            if not len(batch.slots):
                return StepResult(batch.step, np.zeros(0, np.int32))
            runs, special = has_runs(batch), 1 in self._special[batch.slots].tobytes()
            if isinstance(self.memory, SmallMemory) and not special and not runs:
                return self._launch_small(batch, self.memory)
            offsets = ragged_offsets(batch.lengths)
            computed = self.memory.compute(batch, self._resolve_tokens(batch, offsets), offsets)
            prompts = self._draws.score_prompts(batch, computed) if special else ()
            embeddings = self._embeddings.of(batch, computed) if special else ()
            drawn = self._draw_runs(batch, computed) if runs else self._draw_all(batch, computed)
        except GhostFault as fault:
            self.faults.append(fault)
            raise
        self._last[batch.slots[batch.samples]] = drawn.last
        return structs.replace(drawn, prompt_logprobs=prompts, embeddings=embeddings)

    def _launch_small(self, batch: StepBatch, memory: SmallMemory) -> StepResult:
        """A step of likeliest tokens only, without an array for each thing that is known of it."""
        tokens: list[int] = []
        fed: list[int] = []
        """The last token of each segment."""
        columns = (batch.slots, batch.starts, batch.lengths, batch.chained, self._last[batch.slots])
        given = batch.tokens.tolist()
        at = 0
        for slot, start, length, chained, last in zip(*(column.tolist() for column in columns), strict=True):
            if chained and last < 0:
                raise GhostFault(batch.step, slot, start, NOTHING_DRAWN)
            if chained:
                tokens.append(last)
            else:
                tokens += given[at : at + length]
                at += length
            fed.append(tokens[-1])
        totals = memory.sums(batch, tokens)
        drawn = [
            likeliest_after(sums[-1], token)
            for sums, token, samples in zip(totals, fed, batch.samples.tolist(), strict=True)
            if samples
        ]
        result = StepResult(batch.step, np.array(drawn, np.int32))
        self._last[batch.slots[batch.samples]] = result.tokens
        return result

    def collect(self, launched: StepResult) -> StepResult:
        """What `launch` gave: it was computed there."""
        return launched

    def _admit(self, admissions: Sequence[SlotAssignment]) -> None:
        for admission in admissions:
            slot = admission.slot
            self._last[slot] = _NOTHING
            self._special[slot] = not is_plain(admission.sampling)
        self._draws.admit(admissions)
        self._embeddings.admit(admissions)

    # ---- draw ----

    def _resolve_tokens(self, batch: StepBatch, offsets: Int32s) -> Int32s:
        """The inputs, int32 [t]: those given, and the last drawn ones of chained segments."""
        if 1 not in batch.chained.tobytes():
            return batch.tokens
        slots = batch.slots[batch.chained]
        drawn = self._last[slots]
        if drawn.min() < 0:
            first = int(drawn.argmin())
            position = int(batch.starts[batch.chained][first])
            raise GhostFault(batch.step, int(slots[first]), position, NOTHING_DRAWN)
        return with_chained(batch, offsets, drawn)

    def _draw_all(self, batch: StepBatch, computed: Computed) -> StepResult:
        """One token for each segment that samples."""
        rows, slots = computed.last_rows[batch.samples], batch.slots[batch.samples]
        drawn = self._draw(Rows(rows, slots, computed.positions[rows] + 1), computed)
        return StepResult(batch.step, drawn.tokens, drawn.logprobs, refused=drawn.refused)

    def _draw_runs(self, batch: StepBatch, computed: Computed) -> StepResult:
        """Tokens of a step with runs; what was computed for drafts that are not accepted is no part of the slot."""
        result, counts = draw_in_rounds(batch, computed.offsets, lambda where: self._draw(where, computed))
        for segment in np.flatnonzero(batch.chained & (counts < batch.lengths)).tolist():
            self.memory.rewind(batch, segment, int(batch.starts[segment] + counts[segment]))
        return result

    def _draw(self, where: Rows, computed: Computed) -> Round:
        tokens = likeliest(computed.states[where.rows], computed.tokens[where.rows])
        special = self._special[where.slots]
        if 1 not in special.tobytes():
            return Round(tokens)
        drawn = self._draws.draw(where, computed, special)
        tokens[special] = drawn.tokens
        refused: Bools | None = None
        if drawn.refused is not None:
            refused = np.zeros(len(tokens), np.bool_)
            refused[special] = drawn.refused
        return Round(tokens, drawn.logprobs, refused=refused)


def is_plain(sampling: SamplingParameters) -> bool:
    """Whether a request wants the likeliest token as it is, and nothing else."""
    greedy = sampling.greedy or sampling.top_k == 1
    adjusted = sampling.penalised or sampling.logit_bias or sampling.min_new_tokens > 0 or sampling.grammar is not None
    return greedy and not adjusted and sampling.top_logprobs is None and not sampling.needs_whole_prompt
