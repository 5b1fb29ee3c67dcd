"""The tiers below the device of a simulated engine, judged by who leaves them, and why."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from pawl.actors.tiers.files import UInt8s
from pawl.actors.tiers.store import TierStore, Write
from pawl.memory.tiers.keys import PageKey


class TiersAsStated(TierStore):
    """Below the device a page leaves for want of room and for nothing else: where there are files that have room, and
    a disk that writes, none does; and of host memory alone the least recently used one leaves. What was read is in host
    memory after that, as far as it has room."""

    name: ClassVar[str] = "tiers_as_stated"

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.wrong: list[str] = []
        """What has left and should not have, in words."""
        self._used: dict[PageKey, None] = {}
        """Pages that are there, those used last at the end."""

    def keep(self, keys: Sequence[PageKey], data: UInt8s) -> tuple[PageKey, ...]:
        before = self._facts()
        here = super().keep(keys, data)
        self._judge(before, keys)
        return here

    def fill(self, keys: Sequence[PageKey], write: Write) -> tuple[PageKey, ...]:
        before, missing = self._facts(), [key for key in keys if key not in self]
        here = super().fill(keys, write)
        self._judge(before, [key for key in missing if key in self])
        return here

    def read(self, keys: Sequence[PageKey]) -> UInt8s:
        before = self._facts()
        data = super().read(keys)
        self._judge(before, keys[: len(data)])
        below = [key for key in keys[max(0, len(data) - self.host.capacity) : len(data)] if key not in self.host]
        if below:
            self.wrong.append(f"{len(below)} pages were read, and are not in host memory")
        return data

    def views(self, keys: Sequence[PageKey], most: int) -> list[UInt8s] | None:
        before, there = self._facts(), [key for key in keys if key in self.host]
        found = super().views(keys, most)
        self._judge(before, there)
        return found

    def empty_host(self) -> None:
        super().empty_host()
        self._used = {key: None for key in self._used if key in self}

    def _facts(self) -> tuple[int, int] | None:
        """Trouble of the disk so far."""
        return None if self.files is None else (self.files.errors, self.files.corrupt)

    def _judge(self, before: tuple[int, int] | None, used: Collection[PageKey]) -> None:
        """These were used; others may have left."""
        gone = [key for key in self._used if key not in self and key not in used]
        stayed = [key for key in self._used if key in self and key not in used]
        files = self.files
        if files is None:
            place = {key: at for at, key in enumerate(self._used)}
            if gone and stayed and place[gone[-1]] > place[stayed[0]]:
                self.wrong.append(f"pages left host memory before {stayed[0].hex()}, which was used a longer time ago")
        elif gone and files.writable and len(files) < files.capacity and before == self._facts():
            self.wrong.append(f"{len(gone)} pages left, and files have {files.capacity - len(files)} places")
        self._used = {key: None for key in self._used if key in self}
        for key in used:
            self._used.pop(key, None)
            if key in self:
                self._used[key] = None
