"""A hold on a path of the radix tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pawl.memory.arrays import Int32s
from pawl.memory.prefix.node import Node, path_pages
from pawl.memory.violation import MemoryViolation

if TYPE_CHECKING:
    from pawl.memory.prefix.radix import RadixCache


class RadixHold:
    """A held path from the root down to `node`; `node` is None when nothing was found."""

    __slots__ = ("_pages", "node", "num_tokens", "owner", "released")

    def __init__(self, owner: RadixCache, node: Node | None, num_tokens: int) -> None:
        self.owner = owner
        self.node = node
        self.num_tokens = num_tokens
        self.released = False
        self._pages: Int32s | None = None

    @property
    def pages(self) -> Int32s:
        """Pages of the path in order, int32 [num_tokens / page_size], read-only. Gathered at the first look."""
        if self._pages is None:
            if self.released:
                raise MemoryViolation("the pages of a released hold are unknown", num_tokens=self.num_tokens)
            self._pages = path_pages(self.node)
        return self._pages
