"""The adapters that a runner holds, and which of them each of its slots computes with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import structlog

from pawl.gpu.adapters.low_rank import Adapter, PackedAdapter
from pawl.gpu.batches import InvalidBatch
from pawl.gpu.devices import is_out_of_memory
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.parallel.shard import Shard
from pawl.gpu.step_runner import AdapterRefused
from pawl.lifecycle.step import Int32s, SlotAssignment, StepBatch

ReadAdapter: TypeAlias = Callable[[str, ModelConfig], Adapter]
"""The adapter of a source, for a model. Raises AdapterRefused."""

log = structlog.get_logger("pawl.gpu.adapters")


class AdapterSlots:
    """Adapters by their number, from 1 on; a slot whose request has none has number 0. One thread may load and unload
    while another runs steps that use other adapters."""

    def __init__(self, config: ModelConfig, num_slots: int, read: ReadAdapter, shard: Shard | None = None) -> None:
        """A rank keeps its `shard` of the adapters of the model of `config`."""
        self._config = config
        self._read = read
        self._shard = shard
        self._packed: dict[int, PackedAdapter] = {}
        self._number = np.zeros(num_slots, np.int32)

    def load(self, number: int, source: str, pack: Callable[[Adapter], PackedAdapter]) -> str:
        """See `StepRunner.load_adapter`; `pack` lays it out for the backend. Raises AdapterRefused."""
        self.unload(number)
        adapter = self._read(source, self._config)
        try:
            packed = pack(adapter if self._shard is None else self._shard.adapter(adapter))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise AdapterRefused(" ".join(str(error).split())) from error
        self._packed[number] = packed
        log.info("adapter loaded", number=number, source=source, bytes=packed.num_bytes)
        return adapter.fingerprint

    def unload(self, number: int) -> None:
        """See `StepRunner.unload_adapter`."""
        self._packed.pop(number, None)

    def reset(self) -> None:
        """Forget every slot; adapters stay."""
        self._number[:] = 0

    def check(self, batch: StepBatch) -> None:
        """Raises InvalidBatch for a newcomer whose adapter is not there."""
        for admission in batch.admitted:
            if admission.adapter and admission.adapter not in self._packed:
                raise InvalidBatch(batch.step, f"there is no adapter in adapter slot {admission.adapter}")

    def admit(self, admissions: Sequence[SlotAssignment]) -> None:
        """Requests enter their slots."""
        for admission in admissions:
            self._number[admission.slot] = admission.adapter

    def of(self, slots: Int32s) -> list[PackedAdapter | None] | None:
        """The adapters of these slots, as `ForwardInputs.adapters` has them."""
        numbers = self._number[slots]
        if not numbers.any():
            return None
        return [self._packed[number] if number else None for number in numbers.tolist()]
