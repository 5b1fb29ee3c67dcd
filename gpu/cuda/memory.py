"""How much of a device's memory is left for pages. Pure arithmetic over what was measured.

total                        the device's
  - what must stay free      (1 - share) of total
  - what is taken            weights, and whatever other programs hold
  - the largest step         measured: a step of the largest size is computed once
  - graphs                   measured: two are recorded
  = pages
"""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 0.9
"""Of a device's memory, unless the user says otherwise. What is left is for the fragments of the allocator, and for
libraries that take memory when they are first used."""


class ModelDoesNotFit(Exception):
    """Weights and the largest step leave no memory for pages. Holds the numbers, bytes."""

    def __init__(self, use: MemoryUse, share: float) -> None:
        gib = float(1 << 30)
        super().__init__(
            f"no memory is left for pages: of {use.total / gib:.2f} GiB {share:.0%} may be used, "
            f"{use.taken / gib:.2f} are taken by weights and other programs, the largest step needs "
            f"{use.step / gib:.2f}, and graphs {use.graphs / gib:.2f}; a smaller prefill_chunk or max_running needs "
            "less, a larger memory_share allows more"
        )
        self.use = use
        self.share = share


class WeightsDoNotFit(Exception):
    """The weights alone are more than the device has free. Both in bytes."""

    def __init__(self, weights: int, free: int) -> None:
        gib = float(1 << 30)
        super().__init__(f"the weights take {weights / gib:.2f} GiB, and {free / gib:.2f} are free on the device")
        self.weights = weights
        self.free = free


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What was measured on a device once the weights are there, bytes."""

    total: int
    free: int
    """Now, with nothing running and nothing cached."""
    step: int
    """Taken by the largest step beyond the weights, at its peak."""
    graphs: int
    """Taken by all graphs together."""

    @property
    def taken(self) -> int:
        """By weights and other programs."""
        return self.total - self.free

    def page_budget(self, share: float) -> int:
        """Bytes for pages when `share` of the device may be used. Raises ModelDoesNotFit when there are none."""
        budget = int(self.total * share) - self.taken - self.step - self.graphs
        if budget <= 0:
            raise ModelDoesNotFit(self, share)
        return budget


def graph_bytes(first: int, second: int, count: int) -> int:
    """Memory of `count` graphs, from what recording the largest took and then one more: later ones use the first one's
    memory for their values, and have only their own list of kernels."""
    if count < 1:
        return 0
    return max(0, first) + max(0, second) * (count - 1)
