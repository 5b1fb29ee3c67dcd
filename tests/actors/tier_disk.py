"""A disk in memory that does what a test tells it: refuse, cut short, mix up, lose."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path


class MemoryDisk:
    """Implements `Disk`. `fault(operation)` names what goes wrong with one operation; None: nothing does.

    read: "error", "cut" (half of it), "other" (another file's content), "flip" (one bit), "gone"; names, write, move,
    remove: "error".
    """

    def __init__(self) -> None:
        self.files: dict[Path, bytes] = {}
        self.fault: Callable[[str], str | None] = lambda operation: None

    def names(self, folder: Path) -> list[str]:
        self._fail("names")
        return [path.name for path in self.files if path.parent == folder]

    def read(self, path: Path, limit: int) -> bytes:
        fault = self._fail("read")
        if fault == "gone" or path not in self.files:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        content = self.files[path][:limit]
        if fault == "cut":
            return content[: len(content) // 2]
        if fault == "other":
            return next((other for name, other in self.files.items() if name != path), b"")[:limit]
        if fault == "flip":
            return content[:-1] + bytes([content[-1] ^ 1])
        return content

    def write(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        self._fail("write")
        self.files[path] = b"".join(bytes(part) for part in parts)

    def move(self, source: Path, target: Path) -> None:
        self._fail("move")
        self.files[target] = self.files.pop(source)

    def remove(self, path: Path) -> None:
        self._fail("remove")
        self.files.pop(path, None)

    def _fail(self, operation: str) -> str | None:
        fault = self.fault(operation)
        if fault == "error":
            raise OSError(errno.EIO, "the disk was told to fail")
        return fault
