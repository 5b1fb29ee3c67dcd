"""What computes a forward pass: the one seam between the runner and the code that does the arithmetic.

A backend owns the weights and writes keys and values into the `KvStore` it was made with; it keeps nothing about slots
between calls, so there is nothing in it to reset. Two exist: the torch decoder (`gpu/models/decoder.py`, any device)
and the compiled CPU kernels (`gpu/native/`). `gpu/select.py` chooses. Both are made as

    Made(config: ModelConfig, weights: Weights, kv: KvStore, *, threads: int)

and take `weights` over: entries are popped as they are packed, so that one copy of each weight exists at a time. A
backend that cannot run raises BackendUnavailable before it pops the first. Names, shapes: `weight_shapes`; norms are
float32, everything else has the store's dtype; matrices may be quantised (`pawl.gpu.weights.blocks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pawl.gpu.adapters.low_rank import Adapter, PackedAdapter
from pawl.gpu.devices import Array, Device
from pawl.gpu.weights.blocks import HostWeight, Weight
from pawl.lifecycle.step import Int32s

if TYPE_CHECKING:
    from pawl.gpu.parallel.shard import Shard

NO_TOKEN = -1
"""Where a token would stand if the model had given scores that can be compared."""


class BackendUnavailable(Exception):
    """A backend that was asked for cannot run here. `reason` says what is missing, in words for the user."""

    def __init__(self, backend: str, reason: str) -> None:
        super().__init__(f"the {backend} backend cannot run here: {reason}")
        self.backend = backend
        self.reason = reason


class RefusedInputs(ValueError):
    """A batch that would read or write what is not its own; nothing was computed."""


@dataclass(frozen=True, eq=False, slots=True)
class ForwardInputs:
    """A flat batch of segments: rows offsets[i] .. offsets[i+1]-1 are segment i, at consecutive positions of one slot.

    At most one segment a slot. All arrays are contiguous int32; `tokens` is on the backend's device, because on CUDA
    some of its entries may still be in flight from the step before; everything else is on the host.
    The arrays must not be kept or written after the call returns: the runner reuses `page_table` and `window_table`.
    """

    tokens: Any
    """[t] int32 on the backend's device: an `Array`."""
    positions: Int32s
    """[t], position of each token in its slot."""
    slots: Int32s
    """[s], slot of each segment; a row of `page_table`."""
    starts: Int32s
    """[s], position of each segment's first token: positions[offsets[i]]."""
    lengths: Int32s
    """[s], tokens of each segment, >= 1: a decoding request has 1."""
    offsets: Int32s
    """[s + 1], where each segment's rows begin; offsets[s] is t."""
    page_table: Int32s
    """[num_slots, max_pages_per_slot]; entries beyond a slot's length mean nothing and may be any number."""
    logit_rows: Int32s
    """[m], rising indices into the t rows whose logits are wanted; m may be 0."""
    window_table: Int32s | None = None
    """As `page_table`, for the layers of the second store, where the `KvStore` has one. Entries of pages behind every
    window mean nothing either; NO_PAGE where somebody else would be read is refused."""
    masks: Int32s | None = None
    """[m, ceil(vocab / 32)], bits: the tokens that `forward_greedy` may choose for each of `logit_rows`, for a backend
    with `greedy_masks`. None: any."""
    expert_counts: Any = None
    """int64 [layers, experts] on the backend's device: the (row, expert) pairs of all rows are added to it, in every
    layer of experts. None: nobody counts, and the last layer need compute no other rows than `logit_rows`."""
    changed: tuple[Int32s, Int32s] | None = None
    """(slots, indices) [n] of all entries of both tables that were set since the last call of this backend; a pair may
    stand there twice. None: any may have been."""
    adapters: Sequence[PackedAdapter | None] | None = None
    """[s], what `pack_adapter` gave for the adapter of each segment, None for a segment without one; one has one, at
    least. None: no segment has one."""


class MovesExperts(Protocol):
    """A backend of a rank whose experts can be elsewhere from one step to the next."""

    def stage_experts(self, weights: Mapping[str, HostWeight], *, anew: bool) -> None:
        """Lay out the rank's parts of these weights of experts, by the names in its own model, beside those that
        compute; `anew`: and drop what was laid out before. Not while experts are switched."""

    def switch_experts(self, shard: Shard) -> None:
        """Have the experts of this shard, which differs in its placement alone, from the next step on. Raises
        ValueError, with nothing changed, where one was not laid out."""


class Backend(Protocol):
    """Writes the keys and values of every input token into its page, and scores the wanted rows."""

    name: str

    @property
    def device(self) -> Device:
        """Where the arrays are that it takes and gives."""

    def forward(self, inputs: ForwardInputs) -> Array:
        """Logits of `inputs.logit_rows`, float32 [m, vocab] on the backend's device.

        The caller may change the result in place; it is theirs until the next call. A query at position p sees keys at
        positions <= p of its own slot (and, in a layer with window w, > p - w), those of this call's tokens included.
        Raises RefusedInputs for a window page that a row would read or write and that does not exist. A stage of a
        pipeline before the last gives what it has computed to the next one, and no rows.
        """

    def hidden(self, inputs: ForwardInputs) -> Array:
        """Hidden states of `inputs.logit_rows` after the final norm, float32 [m, hidden], in place of logits."""

    def named_weights(self) -> Mapping[str, Weight]:
        """Every weight under its canonical name, as it was given to this backend, to the bit. They are views of what
        computes or copies, made when they are asked for, and must not be written. Any thread may read them."""

    def pack_adapter(self, adapter: Adapter) -> PackedAdapter:
        """The adapter as `ForwardInputs.adapters` has it, for every backend of this kind, model and dtype. Another
        thread may call it during a `forward`."""


@runtime_checkable
class GreedyBackend(Backend, Protocol):
    """A backend that can fuse the choice of the likeliest token into its head."""

    greedy_masks: bool
    """Whether it looks at `ForwardInputs.masks`."""

    def forward_greedy(self, inputs: ForwardInputs) -> Array:
        """The token of largest logit (the lowest id among equals) for each of `inputs.logit_rows`, int32 [m].

        NO_TOKEN for a row with a logit that is not a finite number.
        """
