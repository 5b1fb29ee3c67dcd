"""Bytes of pages: of each a rank has its heads.

page       [layers, keys and values, tokens, heads, dimensions]
of ranks   the same with some of the heads, those of lower ranks first
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_HEADS = 3
"""The axis of a page."""


def whole_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Of a page, from those of the ranks of a tensor group."""
    first = list(shapes[0])
    first[_HEADS] = sum(shape[_HEADS] for shape in shapes)
    return tuple(first)


def join_pages(blocks: Sequence[NDArray[np.uint8]], shapes: Sequence[tuple[int, ...]]) -> NDArray[np.uint8]:
    """Whole pages, uint8 [n, bytes], from each rank's part of them."""
    parts = [_by_heads(block, shape) for block, shape in zip(blocks, shapes, strict=True)]
    return np.concatenate(parts, 1 + _HEADS).reshape(len(blocks[0]), -1)


def cut_pages(blocks: NDArray[np.uint8], shape: tuple[int, ...], heads: range) -> NDArray[np.uint8]:
    """A rank's part of whole pages of this shape: the inverse of `join_pages`."""
    part = _by_heads(blocks, shape)[:, :, :, :, heads.start : heads.stop]
    return np.ascontiguousarray(part).reshape(len(blocks), -1)


def _by_heads(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """[n, layers, keys and values, tokens, heads, bytes of a head]"""
    return blocks.reshape(len(blocks), *shape[:-1], -1)
