"""Where ranks of the compiled kernels meet. Needs neither PyTorch nor the kernels."""

from __future__ import annotations

import msgspec


class Address(msgspec.Struct, frozen=True):
    """Where the ranks of one life meet; readable for processes of the same user while the segment is open."""

    path: str
    life: int
    """Which start of the group it is for, from 0 on, below 2 ** 64."""
    ranks: int
