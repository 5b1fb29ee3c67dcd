"""Where keys and values live: pages of a fixed number of tokens, one allocation for all layers, or two.

    store.data         [layers, 2, pages, page_size, kv_heads, head_dim]
                                |
                                0 keys (after rope), 1 values

The token at position p of slot s is entry p % page_size of page table[s, p // page_size]. Which page belongs to whom is
the scheduler's business; here page 0 is a page like any other, and an entry beyond a slot's length means nothing.

A hybrid model has layers that see everything and layers with a window. Its windowed layers may have a store of their
own, with fewer pages and a table of their own, so that pages behind the window can serve somebody else:

    store.data         [layers without window, 2, pages, ...]           entries of the page table
    store.window_data  [layers with a window, 2, window pages, ...]     entries of the window table
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.gpu.devices import download, upload
from pawl.gpu.dtypes import Dtype, dtype_of, name_of, torch_dtype
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.store import Store
from pawl.lifecycle.step import Int32s

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WINDOW_RATIO = 0.5
"""Window pages for each full page, unless the caller says otherwise: right for contexts of twice the window.

A request holds all its tokens in full pages and at most the window's in window pages. With as many windowed layers as
Gemma 3 has (5 of 6), a half holds 1.7 times the tokens of one store when contexts are long, and 6/7 of them when every
request is shorter than the window; 0.8 would be 1.2 and 24/25, a quarter 2.7 and 2/3.
"""


class KvDoesNotFit(Exception):
    """The budget does not hold even one page."""

    def __init__(self, budget_bytes: int, page_bytes: int) -> None:
        super().__init__(f"a KV budget of {budget_bytes:,} bytes does not hold one page of {page_bytes:,} bytes")
        self.budget_bytes = budget_bytes
        self.page_bytes = page_bytes


class PagesNotPortable(Exception):
    """Pages of a model with two stores have no copy that stands for their tokens: it would be half of it."""

    def __init__(self) -> None:
        super().__init__("pages of a model with a window store cannot be copied out or in")


# ---- planning ----


class MemoryPlan(msgspec.Struct, frozen=True):
    """What a KV budget buys."""

    num_pages: int
    page_size: int
    page_bytes: int
    """Bytes of one page over the layers of the first store: all layers where there is no second."""
    num_window_pages: int | None = None
    """Pages of the second store; None: there is one store."""
    window_page_bytes: int = 0
    """Bytes of one page over the layers of the second store."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the first store holds."""
        return self.num_pages * self.page_size

    @property
    def full_bytes(self) -> int:
        """Bytes of the first store."""
        return self.num_pages * self.page_bytes

    @property
    def window_bytes(self) -> int:
        """Bytes of the second store."""
        return (self.num_window_pages or 0) * self.window_page_bytes

    @property
    def num_bytes(self) -> int:
        return self.full_bytes + self.window_bytes


def hybrid(config: ModelConfig) -> bool:
    """Whether some layers have a window and some have none. Only such models can have two stores: where every layer has
    a window (the first Mistral), one store serves them all, and pages behind the window are kept until their request
    ends."""
    return widest_window(config) is not None and None in config.windows


def widest_window(config: ModelConfig) -> int | None:
    """Keys that a query of the layer with the widest window sees, its own included; None: no layer has a window."""
    return max((window for window in config.windows if window is not None), default=None)


def _layer_bytes_per_token(config: ModelConfig, dtype: Dtype) -> int:
    return 2 * config.kv_size * dtype.itemsize


def plan_memory(
    config: ModelConfig,
    dtype: Dtype,
    page_size: int,
    budget_bytes: int,
    *,
    chunk: int | None = None,
    window_ratio: float = WINDOW_RATIO,
) -> MemoryPlan:
    """How many whole pages fit `budget_bytes`. Raises KvDoesNotFit when none does.

    `chunk`: tokens of one request that a step computes at the most. With it a hybrid model gets two stores, the second
    of `window_ratio` window pages for each full page, but never less than one request can use, nor more than there are
    full pages. Without it, or for any other model: one store.
    """

    def plan(num_pages: int) -> MemoryPlan:
        return _plan(config, dtype, page_size, num_pages, chunk, window_ratio)

    page_bytes = plan(1).num_bytes
    if budget_bytes < page_bytes:
        raise KvDoesNotFit(budget_bytes, page_bytes)
    # More full pages never come with fewer window pages, so the bytes rise.
    counts = range(1, budget_bytes // plan(1).page_bytes + 1)
    return plan(bisect_right(counts, budget_bytes, key=lambda count: plan(count).num_bytes))


def plan_tokens(
    config: ModelConfig,
    dtype: Dtype,
    page_size: int,
    num_tokens: int,
    *,
    chunk: int | None = None,
    window_ratio: float = WINDOW_RATIO,
) -> MemoryPlan:
    """Pages for `num_tokens` tokens, at least one; the second store as `plan_memory` sizes it."""
    return _plan(config, dtype, page_size, max(1, num_tokens // page_size), chunk, window_ratio)


def _plan(
    config: ModelConfig, dtype: Dtype, page_size: int, num_pages: int, chunk: int | None, window_ratio: float
) -> MemoryPlan:
    layer_bytes = _layer_bytes_per_token(config, dtype) * page_size
    window = widest_window(config)
    if chunk is None or window is None or not hybrid(config):
        return MemoryPlan(num_pages, page_size, config.num_layers * layer_bytes)
    # A window that begins inside a page, and a chunk that ends inside one.
    least = -(-window // page_size) + -(-chunk // page_size) + 2
    num_window_pages = min(num_pages, max(least, math.ceil(num_pages * window_ratio)))
    num_full_layers = config.windows.count(None)
    window_page_bytes = (config.num_layers - num_full_layers) * layer_bytes
    return MemoryPlan(num_pages, page_size, num_full_layers * layer_bytes, num_window_pages, window_page_bytes)


# ---- the stores ----


class KvStore:
    """The pages of every layer."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_pages: int,
        page_size: int,
        dtype: Dtype,
        device: torch.device | str,
        num_window_pages: int | None = None,
    ) -> None:
        """With `num_window_pages`, layers with a window have a store of their own. Raises ValueError when the model is
        not hybrid then, and when the store would be empty."""
        if num_window_pages is not None and not hybrid(config):
            raise ValueError("a store for windowed layers needs a model in which some layers have a window, not all")
        if num_window_pages is not None and num_window_pages < 1:
            raise ValueError("a store for windowed layers needs a page")
        two = num_window_pages is not None
        self._windowed = tuple(two and window is not None for window in config.windows)
        self._index = tuple(self._windowed[:layer].count(own) for layer, own in enumerate(self._windowed))
        self._page_shape = (page_size, config.num_kv_heads, config.head_dim)
        self.page_size = page_size
        self.dtype, self.device = dtype_of(dtype), str(device)
        self._make(num_pages, num_window_pages)

    def _make(self, num_pages: int, num_window_pages: int | None) -> None:
        self.num_pages, self.num_window_pages = num_pages, num_window_pages
        self.full = self._store(False, num_pages)
        self.window = None if num_window_pages is None else self._store(True, num_window_pages)
        """The second store; None: there is one."""

    def _store(self, windowed: bool, num_pages: int) -> Store:
        shape = (self._windowed.count(windowed), 2, num_pages, *self._page_shape)
        return Store(shape, self.dtype, self.device)

    @property
    def data(self) -> Tensor:
        """The first store, for who computes in PyTorch."""
        return self.full.tensor

    @property
    def window_data(self) -> Tensor | None:
        """The second store, for who computes in PyTorch."""
        return None if self.window is None else self.window.tensor

    def resize(self, num_pages: int, num_window_pages: int | None) -> None:
        """Other numbers of pages, zeroed; what they held is gone, and so are views of them. Raises ValueError for a
        second store where there was none, or none where there was one."""
        if (num_window_pages is None) != (self.window is None):
            raise ValueError("a store keeps its second part, or goes on without one")
        # The old pages go first: a device may not hold both.
        del self.full, self.window
        self._make(num_pages, num_window_pages)

    def reached(self, pages: Int32s, window_pages: Int32s | None = None) -> None:
        """These are in use from now on. On the host, memory for those that follow is had beside the steps (see
        `pawl.gpu.populate`); bytes do not change."""
        if len(pages):
            self.full.reached(int(pages.max()))
        if self.window is not None and window_pages is not None and len(window_pages):
            self.window.reached(int(window_pages.max()))

    def release(self) -> None:
        """Give the memory of all pages back to the system; what they held is gone. The store is not to be used before
        `resume`. Views of it stay right: on the CPU addresses stay, on a device they come anew. Raises OSError."""
        for store in self._stores():
            store.release()

    def resume(self) -> None:
        """Have memory again, zeroed; on the CPU as it is first written."""
        for store in self._stores():
            store.resume()

    def _stores(self) -> list[Store]:
        return [self.full] if self.window is None else [self.full, self.window]

    def windowed(self, layer: int) -> bool:
        """Whether the layer's pages are in the second store: entries of the window table."""
        return self._windowed[layer]

    def keys(self, layer: int) -> Tensor:
        """[pages of its store, page_size, kv_heads, head_dim], contiguous, a view."""
        return self._of(layer)[0]

    def values(self, layer: int) -> Tensor:
        """[pages of its store, page_size, kv_heads, head_dim], contiguous, a view."""
        return self._of(layer)[1]

    def _of(self, layer: int) -> Tensor:
        store = self.window if self._windowed[layer] and self.window is not None else self.full
        return store.tensor[self._index[layer]]

    # ---- copies of pages ----

    @property
    def layout(self) -> str:
        """What a page is: layers x (keys, values) x tokens x heads x dimensions, and of what."""
        layers, two, _, *page = self.full.shape
        return "x".join(map(str, (layers, two, *page))) + f" {name_of(self.dtype)}"

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers. Raises PagesNotPortable when there are two stores."""
        self._require_one()
        return self.full.page_bytes

    def read(self, pages: Int32s) -> NDArray[np.uint8]:
        """Copies of `pages`, uint8 [n, page_bytes]: keys and values of every layer, [layers, 2, page_size, kv_heads,
        head_dim], as all work issued before leaves them. Waits for them.

        Raises PagesNotPortable, or ValueError for a page that does not exist.
        """
        self._check_pages(pages)
        if not self.full.on_host:
            return self._read_from_device(pages)
        blocks = np.empty((len(pages), self.page_bytes), np.uint8)
        stored = self.full.by_page
        for block, page in zip(blocks, pages.tolist(), strict=True):
            block.reshape(len(stored), -1)[:] = stored[:, page]
        return blocks

    def write(self, pages: Int32s, blocks: NDArray[np.uint8]) -> None:
        """Put what `read` gave into `pages`, distinct, before any work that is issued later.

        Raises PagesNotPortable, or ValueError, with nothing written, for a page that does not exist and for blocks that
        are not uint8 [len(pages), page_bytes].
        """
        self._check_pages(pages)
        expected = (len(pages), self.page_bytes)
        if blocks.dtype != np.uint8 or blocks.shape != expected:
            raise ValueError(f"blocks are {blocks.dtype} {blocks.shape} where uint8 {expected} is needed")
        if not self.full.on_host:
            flat = upload(blocks.reshape(-1), self.data.device).view(self.data.dtype)
            by_page = self._by_page()
            by_page[upload(pages.astype(np.int64), self.data.device)] = flat.view(len(pages), *by_page.shape[1:])
            return
        stored = self.full.by_page
        for block, page in zip(blocks, pages.tolist(), strict=True):
            stored[:, page] = block.reshape(len(stored), -1)

    def _read_from_device(self, pages: Int32s) -> NDArray[np.uint8]:
        gathered = self._by_page()[upload(pages.astype(np.int64), self.data.device)].contiguous()
        return download(gathered.flatten().view(torch_dtype(np.dtype(np.uint8)))).reshape(len(pages), self.page_bytes)

    def _by_page(self) -> Tensor:
        """[pages, layers, 2, page_size, kv_heads, head_dim], a view."""
        return self.data.permute(2, 0, 1, 3, 4, 5)

    def _check_pages(self, pages: Int32s) -> None:
        self._require_one()
        if len(pages) and not 0 <= int(pages.min()) <= int(pages.max()) < self.num_pages:
            raise ValueError(f"a page is not below {self.num_pages}")

    def _require_one(self) -> None:
        if self.window is not None:
            raise PagesNotPortable
