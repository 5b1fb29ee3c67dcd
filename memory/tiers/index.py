"""Which pages the tiers below the device are believed to have.

The tiers themselves live with somebody else and tell what they took and what they dropped. What they tell arrives late,
so an entry may be stale: that costs whoever trusts it a miss, and the miss corrects it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pawl.memory.tiers.keys import PageKey


class TierIndex:
    """A set of keys with the one question that matters: how far does it reach?"""

    def __init__(self) -> None:
        self._known: set[PageKey] = set()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: PageKey) -> bool:
        return key in self._known

    def kept(self, keys: Iterable[PageKey]) -> None:
        """A tier has these now."""
        self._known.update(keys)

    def dropped(self, keys: Iterable[PageKey]) -> None:
        """No tier has these any more."""
        self._known.difference_update(keys)

    def clear(self) -> None:
        """Believe in nothing."""
        self._known.clear()

    def snapshot(self) -> bytes:
        """All of it, for a checkpoint."""
        return b"".join(sorted(self._known))

    def reach(self, keys: Sequence[PageKey], start: int) -> int:
        """How many of `keys` from `start` on are known without a gap: a page without those before it is useless."""
        end = start
        while end < len(keys) and keys[end] in self._known:
            end += 1
        return end - start
