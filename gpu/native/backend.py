"""The decoder in compiled kernels, on the CPU: a whole step is one call.

Bitwise independent of the schedule: a row's logits do not depend on what it is batched with, on how its prompt was
chunked, on where its pages lie, or on the number of threads and ranks.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pawl.gpu.adapters.low_rank import Adapter
from pawl.gpu.backend import ForwardInputs, RefusedInputs
from pawl.gpu.devices import available_threads
from pawl.gpu.dtypes import FLOAT32, converted, tensor_of
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig, weight_shapes
from pawl.gpu.models.switches import check_switches
from pawl.gpu.native.adapters import NativeAdapter, handles
from pawl.gpu.native.bindings import Inputs, load_library
from pawl.gpu.native.build import NativeUnavailable, Sums
from pawl.gpu.native.pointers import int64_pointer, pointer, tokens_pointer
from pawl.gpu.native.ranks import Joined
from pawl.gpu.native.shape import create, expert_parts_of
from pawl.gpu.native.store import library_for
from pawl.gpu.parallel.shard import PANEL, Shard
from pawl.gpu.weights.blocks import BlockFormat, Blocks, HostWeight, Weights, numbers_of, on_host
from pawl.gpu.weights.checks import is_norm
from pawl.lifecycle.step import Float32s, Int32s

if TYPE_CHECKING:
    from pawl.gpu.parallel.rank import Rank


class NativeBackend:
    """`GreedyBackend` in C++ (see `gpu/native/decoder.h`). Not for two threads at once."""

    name = "native"
    switches = frozenset(
        ("local_rope", "activation", "qkv_bias", "qk_norm", "sandwich_norms", "tied_embeddings", "embedding_scale")
    ) | {"experts"}
    """What a model may have (see `pawl.gpu.models.switches`)."""
    greedy_masks = True
    device = None
    """Its arrays are numpy's (see `Backend.device`)."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        kv: KvStore,
        *,
        threads: int | None = None,
        rank: Rank | None = None,
        sums: Sums | None = None,
    ) -> None:
        """Takes `weights` over (see `pawl.gpu.backend`); `threads` defaults to the processors there are. With `rank`,
        config, weights and store are those of its shard, which gathers. `sums` of bfloat16: the fastest here, or as
        another processor has made them.

        Raises BackendUnavailable, with `weights` untouched, when the kernels cannot be had, or do not fit the store,
        the model or the ranks.
        """
        check_switches(self.name, config, self.switches)
        self._library = library_for(config, kv, sums)
        self.config = config
        self.kv = kv
        self.threads = threads or available_threads()
        self._shapes = weight_shapes(config) if rank is None else rank.shard.shapes
        self.rank = rank
        self._joined = None if rank is None else _joined(rank, self._shapes, weights)
        handle = ctypes.c_void_p()
        _raise_unavailable(create(self._library, config, kv, self.threads, rank, handle))
        self._decoder = handle
        self.close = weakref.finalize(self, self._library.destroy, handle)
        """Frees the weights and ends the threads; also done when the backend is collected. Nothing works afterwards."""
        self.close.atexit = False  # a thread that loads or computes may still be at it when the interpreter ends
        self._formats: dict[str, BlockFormat] = {}
        """Of the weights that are computed as the blocks that they came in."""
        for name in self._shapes:
            self._load(name, on_host(weights.pop(name)))

    @property
    def target(self) -> str:
        """What the kernels were compiled for, in words."""
        return self._library.name

    def forward(self, inputs: ForwardInputs) -> Float32s:
        """See `Backend.forward`. Raises RefusedInputs."""
        if self.rank is not None and not self.rank.ends:
            passed = np.empty((len(inputs.positions), self.config.hidden_size), np.float32)
            self._step(inputs, passed=pointer(passed))
            self.rank.pass_on(tensor_of(passed))
            return passed[:0]
        logits = np.empty((len(inputs.logit_rows), self.config.vocab_size), np.float32)
        self._step(inputs, logits=pointer(logits))
        return logits

    def forward_greedy(self, inputs: ForwardInputs) -> Int32s:
        """See `GreedyBackend.forward_greedy`. Raises RefusedInputs."""
        greedy = np.empty(len(inputs.logit_rows), np.int32)
        self._step(inputs, greedy=pointer(greedy))
        return greedy

    def hidden(self, inputs: ForwardInputs) -> Float32s:
        """See `Backend.hidden`. Raises RefusedInputs."""
        hidden = np.empty((len(inputs.logit_rows), self.config.hidden_size), np.float32)
        self._step(inputs, hidden=pointer(hidden))
        return hidden

    def named_weights(self) -> Mapping[str, HostWeight]:
        """See `Backend.named_weights`; each is a copy, made when it is asked for."""
        return _Unpacked(self, self._shapes)

    def weight(self, name: str, shape: tuple[int, ...]) -> HostWeight:
        """A copy of the weight of this canonical name and shape."""
        found: HostWeight
        if (kind := self._formats.get(name)) is None:
            found = np.empty(shape, self._dtype_of(name))
        else:
            found = Blocks(np.empty((shape[0], kind.row_bytes(shape[1])), np.uint8), kind)
        self._move(self._library.read, name, found)
        return found

    def stage_experts(self, weights: Mapping[str, HostWeight], *, anew: bool) -> None:
        """See `MovesExperts.stage_experts`."""
        if anew:
            self._library.drop_staged(self._decoder)
        for name, weight in weights.items():
            numbers = converted(numbers_of(weight), self._dtype_of(name))
            self._move(self._library.stage, name, np.ascontiguousarray(numbers))

    def switch_experts(self, shard: Shard) -> None:
        """See `MovesExperts.switch_experts`."""
        parts = expert_parts_of(self.config, shard)
        message = self._library.switch_experts(self._decoder, pointer(parts))
        if message is not None:
            raise ValueError(message.decode())
        assert self.rank is not None, "there is nobody to share experts with"
        self.rank, self._shapes = self.rank._replace(shard=shard), shard.shapes

    def pack_adapter(self, adapter: Adapter) -> NativeAdapter:
        """See `Backend.pack_adapter`."""
        return NativeAdapter(self._library, self._decoder, adapter, self.kv.dtype)

    def _load(self, name: str, weight: HostWeight) -> None:
        if isinstance(weight, Blocks) and fills_panels(self.config, name):
            self._formats[name] = weight.format
        else:
            weight = np.ascontiguousarray(converted(numbers_of(weight), self._dtype_of(name)))
        self._move(self._library.load, name, weight)

    def _dtype_of(self, name: str) -> np.dtype[Any]:
        return FLOAT32 if is_norm(name) else self.kv.dtype

    def _move(self, call: Any, name: str, weight: HostWeight) -> None:
        layer, short = -1, name
        if name.startswith("model.layers."):
            _, _, index, short = name.split(".", 3)
            layer = int(index)
        data, kind = (weight.data, int(weight.format)) if isinstance(weight, Blocks) else (weight, _ELEMENTS)
        message = call(self._decoder, layer, short.encode(), kind, data.ctypes.data, data.size)
        if message is not None:
            raise ValueError(message.decode())

    def _step(
        self,
        inputs: ForwardInputs,
        *,
        logits: int | None = None,
        greedy: int | None = None,
        hidden: int | None = None,
        passed: int | None = None,
    ) -> None:
        if not self.close.alive or not (self._joined is None or self._joined.leave.alive):
            raise RefusedInputs("the backend is closed")
        begun = self._begun(len(inputs.positions))
        num_slots, pages_per_slot = inputs.page_table.shape
        adapters = None if inputs.adapters is None else handles(inputs.adapters)
        step = Inputs(
            num_tokens=len(inputs.positions),
            num_segments=len(inputs.slots),
            num_logits=len(inputs.logit_rows),
            num_slots=num_slots,
            pages_per_slot=pages_per_slot,
            tokens=tokens_pointer(inputs.tokens, len(inputs.positions)),
            positions=pointer(inputs.positions),
            slots=pointer(inputs.slots),
            starts=pointer(inputs.starts),
            lengths=pointer(inputs.lengths),
            offsets=pointer(inputs.offsets),
            page_table=pointer(inputs.page_table),
            logit_rows=pointer(inputs.logit_rows),
            window_table=None if inputs.window_table is None else pointer(inputs.window_table),
            logits=logits,
            greedy=greedy,
            masks=None if inputs.masks is None else pointer(inputs.masks),
            hidden=hidden,
            adapters=None if adapters is None else adapters.ctypes.data,
            expert_counts=None if inputs.expert_counts is None else int64_pointer(inputs.expert_counts),
            begun=None if begun is None else pointer(begun),
            passed=passed,
        )
        if adapters is not None and len(adapters) != step.num_segments:
            raise RefusedInputs("adapters and slots differ in length")
        if inputs.masks is not None and inputs.masks.shape != (step.num_logits, -(-self.config.vocab_size // 32)):
            raise RefusedInputs(f"masks of shape {inputs.masks.shape}")
        if len(inputs.starts) != step.num_segments or len(inputs.lengths) != step.num_segments:
            raise RefusedInputs("slots, starts and lengths differ in length")
        if len(inputs.offsets) != step.num_segments + 1:
            raise RefusedInputs("offsets do not have one entry more than slots")
        if inputs.window_table is not None and inputs.window_table.shape != inputs.page_table.shape:
            raise RefusedInputs("page table and window table differ in shape")
        message = self._library.forward(self._decoder, ctypes.byref(step))
        if message is not None:
            if self._joined is not None:
                self._joined.check()
            raise RefusedInputs(message.decode())

    def _begun(self, rows: int) -> Float32s | None:
        """What the stage before has computed of a step, [rows, hidden]; None where there is none before."""
        if self.rank is None or self.rank.shard.first:
            return None
        hidden = np.empty((rows, self.config.hidden_size), np.float32)
        self.rank.receive(tensor_of(hidden))
        return hidden


_ELEMENTS = -1
"""The format of a weight that is no blocks."""


def fills_panels(config: ModelConfig, name: str) -> bool:
    """Whether a matrix begins and ends where others in the same product do not: only then it can stay in blocks."""
    return not name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")) or not (
        config.query_size % PANEL or config.kv_size % PANEL
    )


class _Unpacked(Mapping[str, HostWeight]):
    """The weights of a backend, which keeps them in the order in which its kernels read them."""

    def __init__(self, backend: NativeBackend, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._backend = backend
        self._shapes = shapes

    def __getitem__(self, name: str) -> HostWeight:
        return self._backend.weight(name, self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def check_available(config: ModelConfig) -> None:
    """Raises BackendUnavailable where this machine or these kernels cannot compute the model."""
    check_switches(NativeBackend.name, config, NativeBackend.switches)
    load_library()


def _joined(rank: Rank, names: Iterable[str], weights: Weights) -> Joined | None:
    """Where the rank meets the others of its stage, if there are some. Raises NativeUnavailable where it cannot, or
    computes other bits than one."""
    if rank.shard.topology.tensor == 1:
        return None
    if rank.joined is None or not rank.shard.gathers:
        raise NativeUnavailable("its ranks gather what they multiply, in memory that they share")
    own, whole = rank.shard.config, rank.shard.whole
    differing = (name for name in names if fills_panels(own, name) != fills_panels(whole, name))
    if any(isinstance(weights[name], Blocks) for name in differing):
        raise NativeUnavailable(f"quantised heads of {whole.head_dim} columns do not fill panels of {PANEL} on a rank")
    return rank.joined


def _raise_unavailable(message: bytes | None) -> None:
    if message is not None:
        raise NativeUnavailable(message.decode())
