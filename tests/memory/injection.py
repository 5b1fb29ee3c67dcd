"""Failures of single operations, wherever a step calls one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pawl.memory.memory import Memory
from pawl.memory.window_pool import WindowPool


class InjectedFailure(MemoryError):
    """Stands for any failure of one operation."""


class Injector:
    """Lets call number `at` of the wrapped operations fail: `refuse` (None), `before` or `after` it took effect."""

    def __init__(self, memory: Memory, way: str, at: int) -> None:
        self.calls = 0
        self.failed = ""
        """The operation that did."""
        self._way = way
        self._at = at
        refusing: list[tuple[object, str]] = [(memory.pages, "take"), (memory, "promise")]
        # What these do is undone even when the caller never heard of it, because it was logged before or by them.
        logged: list[tuple[object, str]] = [
            (memory.slots, "take"),
            (memory.page_table, "append"),
            (memory.page_table, "grow"),
            (memory.page_table, "lengthen"),
            (memory.page_table, "advance"),
        ]
        others: list[tuple[object, str]] = [
            (memory.pages, "share"),
            (memory.cache, "match_and_hold"),
            (memory.escrow, "spend"),
        ]
        if isinstance(memory.windows, WindowPool):
            refusing.append((memory.windows.pool, "take"))
            others.append((memory.windows.pool, "share"))
        for owner, name in refusing:
            self._wrap(owner, name, can_refuse=True, logs=True)
        for owner, name in logged:
            self._wrap(owner, name, can_refuse=False, logs=True)
        for owner, name in others:
            self._wrap(owner, name, can_refuse=False, logs=False)

    def _wrap(self, owner: object, name: str, can_refuse: bool, logs: bool) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def failing(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls - 1 != self._at:
                return original(*arguments)
            self.failed = name
            if self._way == "refuse" and can_refuse:
                return None
            if self._way == "after" and logs:
                original(*arguments)
            raise InjectedFailure(name)

        proxy = type(owner)
        # The classes have slots: the operation is overridden in a subclass made for this one object.
        owner.__class__ = type(proxy.__name__, (proxy,), {"__slots__": (), name: lambda _, *rest: failing(*rest)})
