"""The decoder in plain torch, on any device: one class for every architecture that the switches describe.

It works on a flat batch [t, hidden] of tokens of many requests; only attention knows which rows belong together. An
architecture with an operation of its own derives from it and overrides the step that differs: `add`, `feed_forward`,
`score` (see `pawl.gpu.models.architectures`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from pawl.gpu.adapters.low_rank import Adapter
from pawl.gpu.adapters.rows import StepAdapters, TorchAdapters, added, numbered
from pawl.gpu.attention.base import Attention
from pawl.gpu.attention.paged import PagedAttention, PagedPlan
from pawl.gpu.backend import ForwardInputs
from pawl.gpu.devices import upload
from pawl.gpu.dtypes import tensor_of
from pawl.gpu.expert_counts import tally
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig, Operation, Rope
from pawl.gpu.models.experts import mix, route
from pawl.gpu.models.packing import LayerWeights, pack, unpacked, with_experts
from pawl.gpu.models.switches import SWITCHES, check_switches
from pawl.gpu.parallel.rank import Rank
from pawl.gpu.parallel.shard import Shard
from pawl.gpu.weights.blocks import HostWeight, Tensors, Weights, numbers_of


class RopeTable:
    """Turns query and key heads by angles that grow with their position."""

    def __init__(self, rope: Rope, head_dim: int, device: torch.device) -> None:
        self.frequencies = upload(rope.inverse_frequencies(head_dim), device)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, float32 [t, 1, head_dim / 2], for positions float32 [t]."""
        angles = (positions[:, None] * self.frequencies)[:, None]
        return angles.cos(), angles.sin()


def turn(heads: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rope to [t, heads, head_dim]; computed in float32, returned in the input's dtype."""
    cosine, sine = angles
    first, second = heads.float().chunk(2, -1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)
    return turned.to(heads.dtype)


class TorchDecoder:
    """`Backend` in plain torch. The result of a row may differ in its last bits with what it is batched with."""

    name = "torch"
    operation: ClassVar[type[Operation] | None] = None
    """What this class computes beyond the switches."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        kv: KvStore,
        *,
        threads: int,
        rank: Rank | None = None,
    ) -> None:
        """Takes `weights` over (see `pawl.gpu.backend`). `threads` sets torch's thread count for this process. `rank`:
        `config` and weights are those of its shard. Raises BackendUnavailable where the model has an operation that
        this class does not compute."""
        check_switches(self.name, config, SWITCHES.keys(), self.operation)
        torch.set_num_threads(threads)
        self.config = config
        self.rank = rank
        self.device = kv.data.device
        self.attention: Attention[PagedPlan] = PagedAttention(config, kv)
        self.weights = pack(config, Tensors(weights, kv.dtype), self.device)
        ropes = {config.rope_of(layer) for layer in range(config.num_layers)}
        self._staged: dict[str, Tensor] = {}
        """Weights of experts that are to come, by their names."""
        self._counts: Tensor | None = None
        """Where the experts of this step are counted."""
        self.ropes = {rope: RopeTable(rope, config.head_dim, self.device) for rope in ropes}

    def forward(self, inputs: ForwardInputs) -> Tensor:
        """See `Backend.forward`."""
        normed = self._normed(inputs)
        return self.score(normed) if self.ends else normed.float()

    def hidden(self, inputs: ForwardInputs) -> Tensor:
        """See `Backend.hidden`."""
        return self._normed(inputs).float()

    def stage_experts(self, weights: Mapping[str, HostWeight], *, anew: bool) -> None:
        """See `MovesExperts.stage_experts`."""
        dtype = self.weights.layers[0].output.dtype
        kept = {} if anew else self._staged
        self._staged = kept | {
            name: tensor_of(numbers_of(weight)).to(self.device, dtype) for name, weight in weights.items()
        }

    def switch_experts(self, shard: Shard) -> None:
        """See `MovesExperts.switch_experts`."""
        assert self.rank is not None, "there is nobody to share experts with"
        layers = zip(self.weights.layers, map(shard.held, shard.layers), strict=True)
        changed = tuple(with_experts(n, layer, held, self._staged) for n, (layer, held) in enumerate(layers))
        self.weights = replace(self.weights, layers=changed)
        self.rank, self._staged = self.rank._replace(shard=shard), {}

    def named_weights(self) -> Mapping[str, Tensor]:
        """See `Backend.named_weights`."""
        return unpacked(self.config, self.weights)

    def pack_adapter(self, adapter: Adapter) -> Adapter:
        """See `Backend.pack_adapter`."""
        return adapter.to(self.weights.layers[0].output.dtype, self.device)

    def _normed(self, inputs: ForwardInputs) -> Tensor:
        """The wanted rows after the last layer and the final norm, [m, hidden]."""
        self._counts = inputs.expert_counts
        positions = upload(inputs.positions, self.device).float()
        angles = {rope: table.angles(positions) for rope, table in self.ropes.items()}
        plan = self.attention.prepare(inputs)
        hidden = self._begun(inputs)
        last = self.config.num_layers - 1 if self.ends else -1
        adapters = None if inputs.adapters is None else TorchAdapters.of(*numbered(inputs, Adapter), self.device)
        for index, layer in enumerate(self.weights.layers_with(adapters)):
            attended = self._attend(plan, index, layer, hidden, angles[self.config.rope_of(index)])
            if index == last and self._counts is None:
                # Past the last attention only the wanted rows matter.
                attended, hidden = self._wanted(inputs, attended), self._wanted(inputs, hidden)
                layer = layer.of_rows(inputs.logit_rows)
            hidden = self._after_attention(index, layer, hidden, attended)
        if self.rank is not None and not self.rank.ends:
            self.rank.pass_on(hidden.contiguous())
            return hidden[:0]
        if self._counts is not None:
            hidden = self._wanted(inputs, hidden)
        return self._norm(hidden, self.weights.final_norm)

    @property
    def ends(self) -> bool:
        """What comes out are the rows that are wanted, and not what another stage goes on with."""
        return self.rank is None or self.rank.ends

    def _begun(self, inputs: ForwardInputs) -> Tensor:
        """What the first layer here gets, [t, hidden]: rows of the embedding, or what the stage before has sent."""
        dtype = self.weights.layers[0].output.dtype
        begun = self.rank and self.rank.begun(len(inputs.positions), dtype, self.device)
        if begun is not None:
            return begun
        hidden = self.embed(inputs.tokens)
        return hidden if self.config.embedding_scale == 1.0 else hidden * self.config.embedding_scale

    def embed(self, tokens: Tensor) -> Tensor:
        """Rows of the embedding, [t, hidden], for tokens int32 [t]."""
        if self.rank is None:
            return self.weights.embedding[tokens]
        # One rank has a token's row, and the sum with zeros is that row.
        own = tokens - self.rank.shard.vocabulary.start
        absent = (own < 0) | (own >= len(self.weights.embedding))
        return self.summed(self.weights.embedding[own.masked_fill(absent, 0)].masked_fill(absent[:, None], 0))

    def summed(self, partial: Tensor) -> Tensor:
        """The sum over all ranks of what each has of it, in the type of `partial`, added in float32."""
        if self.rank is None:
            return partial
        total = partial.float().contiguous()
        self.rank.communicator.all_reduce(total)
        return total.to(partial.dtype)

    def add(self, hidden: Tensor, delta: Tensor) -> Tensor:
        """The residual [n, hidden] with what attention or the MLP gave."""
        return hidden + delta

    def feed_forward(self, index: int, layer: LayerWeights, normed: Tensor) -> Tensor:
        """The MLP of layer `index`, or its experts: [n, hidden] -> [n, hidden]; of ranks each its part of the sum."""
        experts = self.config.experts_of(index)
        if experts is None or layer.router is None:
            return self.mlp(normed, layer.gate_up, layer.down, layer.adapters)
        routes = route(F.linear(normed, layer.router), experts)
        if self._counts is not None:
            tally(self._counts[index], routes.experts)
        copies = () if self.rank is None else self.rank.shard.copies[index]
        return mix(routes, normed, layer.held, lambda rows, n: self.mlp(rows, layer.gate_up[n], layer.down[n]), copies)

    def mlp(self, rows: Tensor, gate_up: Tensor, down: Tensor, adapters: StepAdapters | None = None) -> Tensor:
        """One gated MLP: [n, hidden] -> [n, hidden], with gate_up [2 * inner, hidden] and down [hidden, inner]."""
        gate, up = added(adapters, "gate_up", rows, F.linear(rows, gate_up)).chunk(2, -1)
        gate = F.silu(gate) if self.config.activation == "silu" else F.gelu(gate, approximate="tanh")
        inner = gate * up
        return added(adapters, "down", inner, F.linear(inner, down))

    def score(self, normed: Tensor) -> Tensor:
        """Logits float32 [n, vocab] of normed rows [n, hidden]."""
        logits = F.linear(normed, self.weights.head).float()
        if self.rank is None:
            return logits
        return self.rank.communicator.all_gather(logits, list(map(len, self.rank.shard.vocabularies)))

    def _wanted(self, inputs: ForwardInputs, rows: Tensor) -> Tensor:
        if len(inputs.logit_rows) == len(rows):
            return rows
        return rows.index_select(0, upload(inputs.logit_rows.astype(np.int64), self.device))

    def _norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        normed = F.rms_norm(rows.float(), weight.shape, weight, self.config.norm_epsilon)
        return normed.to(rows.dtype)

    def _attend(
        self, plan: PagedPlan, index: int, layer: LayerWeights, hidden: Tensor, angles: tuple[Tensor, Tensor]
    ) -> Tensor:
        """[t, hidden] -> [t, heads * head_dim], before the output projection."""
        config = self.config
        normed = self._norm(hidden, layer.input_norm)
        fused = added(layer.adapters, "qkv", normed, F.linear(normed, layer.qkv, layer.qkv_bias))
        heads = fused.view(len(hidden), -1, config.head_dim)
        first_value = config.num_heads + config.num_kv_heads
        query, key, value = (
            heads[:, : config.num_heads],
            heads[:, config.num_heads : first_value],
            heads[:, first_value:],
        )
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = self._norm(query, layer.query_norm), self._norm(key, layer.key_norm)
        return self.attention.attend(plan, index, turn(query, angles), turn(key, angles), value)

    def _after_attention(self, index: int, layer: LayerWeights, hidden: Tensor, attended: Tensor) -> Tensor:
        """Output projection, MLP and both residuals: [n, hidden]."""
        projected = self.summed(added(layer.adapters, "output", attended, F.linear(attended, layer.output)))
        if layer.attention_norm is not None:
            projected = self._norm(projected, layer.attention_norm)
        hidden = self.add(hidden, projected)
        inner = self.summed(self.feed_forward(index, layer, self._norm(hidden, layer.mlp_norm)))
        if layer.after_mlp_norm is not None:
            inner = self._norm(inner, layer.after_mlp_norm)
        return self.add(hidden, inner)
