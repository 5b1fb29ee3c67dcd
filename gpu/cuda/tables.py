"""The page tables on the device, kept up with those on the host."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pawl.gpu.backend import ForwardInputs, RefusedInputs
from pawl.gpu.devices import upload, upload_into


class DeviceTables:
    """Copies of the runner's tables: one, or two where there are two stores.

    A copy is right for the slots of the batch it last followed; entries that mean nothing on the host mean nothing
    here. Its address never changes once it is `fixed`, because graphs hold it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.fixed = False
        self._copies: list[Tensor] = []
        self._followed = False
        """The copies have been those of the host. What changed before that was told to somebody else."""

    def allocate(self, num_tables: int, num_slots: int, pages_per_slot: int) -> None:
        """Tables of zeros of this size. Raises RefusedInputs when they are fixed and have another."""
        shape = (num_slots, pages_per_slot)
        if len(self._copies) == num_tables and all(copy.shape == shape for copy in self._copies):
            return
        if self.fixed:
            raise RefusedInputs("page tables have another size than when graphs were recorded")
        self._copies = [torch.zeros(shape, dtype=torch.int32, device=self.device) for _ in range(num_tables)]
        self._followed = False

    def follow(self, inputs: ForwardInputs) -> None:
        """Take over the tables of `inputs`: whole the first time, then what changed, or all rows of its slots where
        that is not said."""
        hosts = [inputs.page_table] if inputs.window_table is None else [inputs.page_table, inputs.window_table]
        self.allocate(len(hosts), *inputs.page_table.shape)
        if not self._followed:
            for copy, host in zip(self._copies, hosts, strict=True):
                upload_into(host, copy)
            self._followed = True
            return
        if inputs.changed is None:
            rows = upload(inputs.slots, self.device).long()
            for copy, host in zip(self._copies, hosts, strict=True):
                copy.index_copy_(0, rows, upload(host[inputs.slots], self.device))
            return
        slots, indices = inputs.changed
        if len(slots):
            # Values are those of the table as it is now, so that a pair which stands there twice has one value.
            changes = upload(np.stack([slots, indices, *(host[slots, indices] for host in hosts)]), self.device)
            where = (changes[0].long(), changes[1].long())
            for copy, values in zip(self._copies, changes[2:], strict=True):
                copy.index_put_(where, values)

    def of(self, windowed: bool) -> Tensor:
        """int32 [num_slots, pages_per_slot], the table of a layer's store."""
        return self._copies[-1 if windowed else 0]
