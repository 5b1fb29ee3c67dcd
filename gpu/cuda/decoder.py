"""The decoder for CUDA devices: Triton kernels around large matrix products, and graphs for steps that only decode.

The residual is carried as two tensors, `hidden` and what is still to be added to it, because the kernel that norms the
sum also stores it:

    hidden -> [norm] -> qkv -> attention -> output -> hidden, delta -> [add, norm] -> MLP -> hidden, delta -> ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from pawl.gpu.adapters.low_rank import Adapter
from pawl.gpu.adapters.rows import added, numbered
from pawl.gpu.attention.triton import DecodeRows, SegmentRows, TritonAttention, TritonPlan
from pawl.gpu.backend import ForwardInputs
from pawl.gpu.cuda.adapters import KernelAdapter, KernelAdapters
from pawl.gpu.cuda.graphs import DecodeGraphs, Recorder
from pawl.gpu.cuda.shapes import GraphShape, GraphShapes
from pawl.gpu.devices import upload
from pawl.gpu.expert_counts import tally
from pawl.gpu.kernels.activation import gated
from pawl.gpu.kernels.decode import splits_for
from pawl.gpu.kernels.experts import experts_forward, route
from pawl.gpu.kernels.norm import add_norm
from pawl.gpu.kernels.sampling import likeliest
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.packing import LayerWeights, pack, unpacked
from pawl.gpu.models.switches import check_switches
from pawl.gpu.weights.blocks import Tensors, Weights
from pawl.lifecycle.step import Int32s

Linear: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""[n, outputs] from rows [n, inputs], a matrix [outputs, inputs], and a bias [outputs] or none."""


@dataclass(frozen=True, slots=True)
class Residual:
    """A residual stream of which the last part has not been added yet."""

    hidden: Tensor
    """[n, hidden]"""
    delta: Tensor | None
    delta_norm: Tensor | None
    """Weight of a norm that `delta` goes through before it is added."""


class TritonDecoder:
    """`GreedyBackend` in Triton kernels. What `forward` gives may be overwritten by the next call."""

    switches = frozenset(
        ("local_rope", "activation", "qkv_bias", "qk_norm", "sandwich_norms", "tied_embeddings", "embedding_scale")
    ) | {"experts"}
    """What a model may have (see `pawl.gpu.models.switches`)."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        kv: KvStore,
        *,
        threads: int,
        deterministic: bool = False,
    ) -> None:
        """Takes `weights` over (see `pawl.gpu.backend`); `threads` are for what torch does on the host.

        `deterministic`: every product adds in an order that does not depend on how many rows there are, so that a row's
        bits depend on its own request alone. Raises BackendUnavailable for a model with a switch it does not know.
        """
        check_switches("triton", config, self.switches)
        torch.set_num_threads(threads)
        # Pages of one are of no use to the other: their bits differ.
        self.name = "triton-deterministic" if deterministic else "triton"
        self.config = config
        self.device = kv.data.device
        self.dtype = kv.data.dtype
        self.attention = TritonAttention(config, kv, one_kernel=deterministic)
        self.weights = pack(config, Tensors(weights, kv.dtype), self.device)
        self.graphs: DecodeGraphs | None = None
        self._linear: Linear = _fixed_order() if deterministic else F.linear
        self._logits: Tensor | None = None
        self._counts: Tensor | None = None
        """Where the experts of this step are counted."""

    @torch.inference_mode()
    def allocate_graphs(
        self, recorder: Recorder, *, max_rows: int, num_slots: int, pages_per_slot: int, max_context: int
    ) -> DecodeGraphs:
        """Get ready to record graphs; they are used as they are recorded. Tables keep this size from now on, and the
        store must not move."""
        self.attention.tables.allocate(self.attention.num_stores, num_slots, pages_per_slot)
        self.attention.tables.fixed = True
        self._logits = torch.empty((max_rows, self.config.vocab_size), dtype=torch.float32, device=self.device)
        self.graphs = DecodeGraphs(
            GraphShapes(max_rows, max_context),
            recorder,
            self._compute_block,
            num_stores=self.attention.num_stores,
            device=self.device,
        )
        return self.graphs

    def free_graphs(self) -> None:
        """Forget all graphs and give their memory back; then tables and store may change again."""
        self.graphs, self._logits = None, None
        self.attention.tables.fixed = False

    @torch.inference_mode()
    def forward(self, inputs: ForwardInputs) -> Tensor:
        """See `Backend.forward`."""
        return self._forward(inputs).float()

    greedy_masks = False

    @torch.inference_mode()
    def forward_greedy(self, inputs: ForwardInputs) -> Tensor:
        """See `GreedyBackend.forward_greedy`."""
        return likeliest(self._forward(inputs))

    def named_weights(self) -> Mapping[str, Tensor]:
        """See `Backend.named_weights`."""
        return unpacked(self.config, self.weights)

    @torch.inference_mode()
    def hidden(self, inputs: ForwardInputs) -> Tensor:
        """See `Backend.hidden`."""
        self._counts = inputs.expert_counts
        self.attention.tables.follow(inputs)
        plan = self.attention.prepare(inputs)
        return self._last_normed(inputs.tokens, plan, inputs.logit_rows, self._adapters(inputs)).float()

    def pack_adapter(self, adapter: Adapter) -> KernelAdapter:
        """See `Backend.pack_adapter`."""
        return KernelAdapter(adapter, self.dtype, self.device)

    def _forward(self, inputs: ForwardInputs) -> Tensor:
        """Logits of the wanted rows, float32 or of the model's dtype."""
        self._counts = inputs.expert_counts
        self.attention.tables.follow(inputs)
        # Adapters come and go: no graph knows where they lie.
        # Nor are graphs recorded with counts.
        plain = inputs.adapters is None and inputs.expert_counts is None
        if self.graphs is not None and plain and len(inputs.positions) == len(inputs.slots):
            logits = self._replayed(self.graphs, inputs)
            if logits is not None:
                return logits
        plan = self.attention.prepare(inputs)
        wanted = None if len(inputs.logit_rows) == len(inputs.positions) else inputs.logit_rows
        return self._scores(inputs.tokens, plan, wanted, self._adapters(inputs))

    def _adapters(self, inputs: ForwardInputs) -> KernelAdapters | None:
        """Those of the step."""
        if inputs.adapters is None:
            return None
        return KernelAdapters.of(*numbered(inputs, KernelAdapter), self.device)

    def _replayed(self, graphs: DecodeGraphs, inputs: ForwardInputs) -> Tensor | None:
        """Logits by a graph; None where none holds the step."""
        written = self.attention.written(inputs)
        if self._logits is None or not graphs.run(inputs.tokens, inputs.positions, inputs.slots, written):
            return None
        if len(inputs.logit_rows) == len(inputs.positions):
            return self._logits[: len(inputs.positions)]
        return self._logits[upload(inputs.logit_rows.astype(np.int64), self.device)]

    @torch.inference_mode()
    def _compute_block(self, block: Tensor, shape: GraphShape) -> None:
        """A decode step from a graph's inputs, scores of all rows into the logits that all graphs share."""
        assert self._logits is not None, "graphs are recorded after they are allocated"
        self._counts = None  # those of the step before are no part of a graph
        plan = self._block_plan(block, shape)
        self._logits[: shape.rows].copy_(self._scores(block[0], plan, None))

    def _block_plan(self, block: Tensor, shape: GraphShape) -> TritonPlan:
        positions, slots, written = block[1], block[2], tuple(block[3:])
        if not self.attention.one_kernel:
            decode = DecodeRows(slots, positions, splits_for(shape.context))
            return TritonPlan(positions, written, decode, None)
        offsets = torch.arange(shape.rows + 1, dtype=torch.int32, device=self.device)
        return TritonPlan(positions, written, None, SegmentRows(slots, positions, offsets))

    def _scores(
        self, tokens: Tensor, plan: TritonPlan, wanted: Int32s | None, adapters: KernelAdapters | None = None
    ) -> Tensor:
        """[n, vocab] in the model's dtype, of rows `wanted` (int32 [n]; None: all) of tokens int32 [t]."""
        return self._linear(self._last_normed(tokens, plan, wanted, adapters), self.weights.head, None)

    def _last_normed(
        self, tokens: Tensor, plan: TritonPlan, wanted: Int32s | None, adapters: KernelAdapters | None
    ) -> Tensor:
        """The same before the head: [n, hidden]."""
        config, weights = self.config, self.weights
        hidden = weights.embedding[tokens]
        if config.embedding_scale != 1.0:
            hidden = hidden * config.embedding_scale
        stream = Residual(hidden, None, None)
        for index, layer in enumerate(weights.layers_with(adapters)):
            normed = self._normed(stream, layer.input_norm)
            qkv = added(layer.adapters, "qkv", normed, self._linear(normed, layer.qkv, layer.qkv_bias))
            attended = self.attention.attend(plan, index, layer, qkv)
            hidden = stream.hidden
            if wanted is not None and index == config.num_layers - 1 and self._counts is None:
                # Past the last attention only the wanted rows matter.
                rows, layer = upload(wanted.astype(np.int64), self.device), layer.of_rows(wanted)
                attended, hidden = attended.index_select(0, rows), hidden.index_select(0, rows)
            delta = added(layer.adapters, "output", attended, self._linear(attended, layer.output, None))
            stream = Residual(hidden, delta, layer.attention_norm)
            normed = self._normed(stream, layer.mlp_norm)
            stream = Residual(hidden, self._after_norm(index, layer, normed, plan.positions), layer.after_mlp_norm)
        normed = self._normed(stream, weights.final_norm)
        if wanted is None or self._counts is None:
            return normed
        return normed.index_select(0, upload(wanted.astype(np.int64), self.device))

    def _normed(self, stream: Residual, weight: Tensor) -> Tensor:
        """The norm of the residual, whose last part is added to `stream.hidden` in place."""
        epsilon = self.config.norm_epsilon
        return add_norm(stream.hidden, stream.delta, weight, epsilon, delta_weight=stream.delta_norm)

    def _after_norm(self, index: int, layer: LayerWeights, normed: Tensor, positions: Tensor) -> Tensor:
        """The MLP, or the experts: [n, hidden] -> [n, hidden]; positions int32 of all rows of the batch."""
        experts, activation = self.config.experts_of(index), self.config.activation
        if experts is None or layer.router is None:
            both = added(layer.adapters, "gate_up", normed, self._linear(normed, layer.gate_up, None))
            inner = gated(both, activation)
            return added(layer.adapters, "down", inner, self._linear(inner, layer.down, None))
        scores = self._linear(normed, layer.router, None)
        # Rows of padding have no experts; there are none once the wanted rows have been picked.
        own = positions if len(positions) == len(normed) else None
        chosen, shares = route(scores, experts.chosen, experts.normalised, positions=own)
        if self._counts is not None:
            tally(self._counts[index], chosen)
        return experts_forward(normed, layer.gate_up, layer.down, chosen, shares, activation)


def _fixed_order() -> Linear:
    """The product that adds in one order, whatever the number of rows."""
    from pawl.gpu.kernels.matmul import matmul  # fast mode does without it

    def product(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = matmul(rows, matrix, bias=bias)
        return result

    return product
