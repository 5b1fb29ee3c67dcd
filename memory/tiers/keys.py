"""Names of pages by what they hold, so that a page outlives the tree, the process and the machine that wrote it.

    root = H(layout, namespace)          key of page i = H(key of page i-1, its tokens)

`layout` says how the bytes of a page are to be read (model, dtype, page size), `namespace` who may read them (adapter,
salt, weight version). So a key stands for all tokens up to the page's end, and two pages with one key are equal:
whoever finds one may use it. 16 bytes of BLAKE2b: among 2**40 pages a collision has a chance of 2**-49.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeAlias

import numpy as np

from pawl.memory.arrays import Int32s
from pawl.memory.prefix.events import Removed, Stored
from pawl.memory.violation import MemoryViolation

PageKey: TypeAlias = bytes
KEY_BYTES = 16


def root_key(layout: str, namespace: str) -> PageKey:
    """The parent of the first page of every prompt of `namespace`."""
    parts = (layout.encode(), namespace.encode())
    # Lengths go in as well: otherwise "ab" + "c" and "a" + "bc" would be one root.
    data = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return blake2b(data, digest_size=KEY_BYTES, person=b"pawl root").digest()


def page_keys(parent: PageKey, tokens: Int32s, page_size: int) -> list[PageKey]:
    """Keys of the whole pages of `tokens`, int32 [n], that come after the page called `parent`. O(n)."""
    data, width = tokens.astype("<i4", copy=False).tobytes(), 4 * page_size
    keys: list[PageKey] = []
    for start in range(0, len(data) - len(data) % width, width):
        parent = blake2b(parent + data[start : start + width], digest_size=KEY_BYTES, person=b"pawl page").digest()
        keys.append(parent)
    return keys


def split_keys(data: bytes) -> list[PageKey]:
    """Keys that stand one after the other. Raises ValueError where the last one is cut."""
    if len(data) % KEY_BYTES:
        raise ValueError(f"{len(data)} bytes are no keys of {KEY_BYTES} bytes")
    return [data[start : start + KEY_BYTES] for start in range(0, len(data), KEY_BYTES)]


class DeviceKeys:
    """The key of every page in the prefix cache on the device, from what the cache tells about itself."""

    def __init__(self, layout: str, page_size: int) -> None:
        self.page_size = page_size
        self._layout = layout
        self._roots: dict[str, PageKey] = {}
        self._key_of: dict[int, PageKey] = {}

    def __len__(self) -> int:
        return len(self._key_of)

    def __getitem__(self, page: int) -> PageKey:
        """The key of a cached page. Raises KeyError for a page that is not cached."""
        return self._key_of[page]

    def items(self) -> list[tuple[int, PageKey]]:
        """(page, key) of every cached page, a page never before the one it hangs below."""
        return list(self._key_of.items())

    def snapshot(self) -> list[bytes]:
        """All of it, for a checkpoint: pages, and as many keys."""
        return [np.array(list(self._key_of), np.int32).tobytes(), b"".join(self._key_of.values())]

    def restore(self, plain: Sequence[bytes]) -> None:
        """Make empty keys those of the snapshot."""
        pages, keys = plain
        self._key_of.update(zip(np.frombuffer(pages, np.int32).tolist(), split_keys(keys), strict=True))

    def root(self, namespace: str) -> PageKey:
        """`root_key`, made once for each namespace that has pages or is asked for."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = root_key(self._layout, namespace)
        return root

    def stored(self, event: Stored) -> list[tuple[int, PageKey]]:
        """Take in new pages; (page, key) of each. Raises MemoryViolation when their parent is unknown."""
        parent = self.root(event.namespace) if event.parent is None else self._key_of.get(event.parent)
        if parent is None:
            raise MemoryViolation("a cached page hangs below a cached page", parent=event.parent)
        keys = page_keys(parent, event.tokens, self.page_size)
        pairs = list(zip(event.pages.tolist(), keys, strict=True))
        self._key_of.update(pairs)
        return pairs

    def removed(self, event: Removed) -> list[tuple[int, PageKey]]:
        """Forget pages; (page, key) of those that were known."""
        gone = ((page, self._key_of.pop(page, None)) for page in event.pages.tolist())
        return [(page, key) for page, key in gone if key is not None]

    def cleared(self) -> None:
        """The cache is empty, or what its pages hold is lost: then it will say nothing new by removing them.

        Namespaces go as well: a server that sees many salts must not remember them all.
        """
        self._key_of.clear()
        self._roots.clear()
