"""What an engine and its member of a trainer's group tell each other; frames of msgpack (`pawl.gpu.frames`).

engine ── Setup ──► child ── Told ──► engine           it has joined, or why not
engine ── Expected, and the memory ──► child ── Told ──► engine       all has come, or why not
"""

from __future__ import annotations

import msgspec

from pawl.lifecycle.weight_group import Place


class Setup(msgspec.Struct, array_like=True):
    """What the child must know first."""

    place: Place
    limit_s: float
    """How long the trainer may take to meet it, and how long a broadcast may take."""


class Expected(msgspec.Struct, array_like=True):
    """Tensors that the trainer broadcasts next, one after the other; the descriptor of their memory comes with it."""

    dtypes: list[str]
    sizes: list[int]
    """Bytes of each."""
    offsets: list[int]
    """Where each begins in the memory, and where that ends."""
    flat: bool
    """They come put together to one tensor."""


class Told(msgspec.Struct, array_like=True):
    """Of the last thing that the child was asked for."""

    refusal: str
    """Why it was not done; "": it was."""
