"""Bytes of pages: of each a rank has its heads in the layers of its stage.

page       [layers, keys and values, tokens, heads, dimensions]
of ranks   the same with some of the layers and heads, those of lower ranks first
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_LAYERS, _HEADS = 0, 3
"""Axes of a page."""


def whole_shape(shapes: Sequence[tuple[int, ...]], stages: int = 1) -> tuple[int, ...]:
    """Of a page, from those of all ranks."""
    ranks = len(shapes) // stages
    layers = sum(shape[_LAYERS] for shape in shapes[::ranks])
    _, two, tokens, _, dimensions = shapes[0]
    return layers, two, tokens, sum(shape[_HEADS] for shape in shapes[:ranks]), dimensions


def join_pages(
    blocks: Sequence[NDArray[np.uint8]], shapes: Sequence[tuple[int, ...]], stages: int = 1
) -> NDArray[np.uint8]:
    """Whole pages, uint8 [n, bytes], from each rank's part of them."""
    parts = [_by_heads(block, shape) for block, shape in zip(blocks, shapes, strict=True)]
    ranks = len(parts) // stages
    of_stages = [np.concatenate(parts[first : first + ranks], 1 + _HEADS) for first in range(0, len(parts), ranks)]
    return np.concatenate(of_stages, 1 + _LAYERS).reshape(len(blocks[0]), -1)


def cut_pages(blocks: NDArray[np.uint8], shape: tuple[int, ...], heads: range, layers: range) -> NDArray[np.uint8]:
    """A rank's part of whole pages of this shape: the inverse of `join_pages`."""
    part = _by_heads(blocks, shape)[:, layers.start : layers.stop, :, :, heads.start : heads.stop]
    return np.ascontiguousarray(part).reshape(len(blocks), -1)


def _by_heads(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """[n, layers, keys and values, tokens, heads, bytes of a head]"""
    return blocks.reshape(len(blocks), *shape[:-1], -1)
