"""Prompts that nobody has read yet: how much of them may wait, as one tokenizer reads them all.

It reads a million characters in half a second at worst, everybody's next prompt waits behind them, and they fill the
memory: so the characters that wait are bounded. Short prompts are let in all the same: only a client that sends long
ones is told to try again later.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from pawl.actors.messages.generate import Submit

SHORT = 20_000
"""Characters, or token ids, of a prompt that is always let in."""
MOST_UNREAD = 4_000_000
"""Characters of longer ones that may wait together. One by itself may have any length."""


def long_characters(submits: Iterable[Submit]) -> list[int]:
    """Characters of each prompt that is long, else 0. Choices of one prompt share it: only the first of them counts."""
    counts, before = [], None
    for submit in submits:
        prompt: Any = submit.text if submit.text is not None else submit.token_ids or submit.chat
        count = 0 if prompt is before else _size(prompt)
        counts.append(count if count > SHORT else 0)
        before = prompt
    return counts


def _size(prompt: Any) -> int:
    """Characters and token ids in a prompt, or in all that chat messages hold."""
    size, left = 0, [prompt]
    while left:
        value = left.pop()
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, dict):
            left += chain(value, value.values())
        elif isinstance(value, list | tuple) and value:
            # Token ids, or parts of messages: lists of both are refused later.
            size += len(value)
            left += () if isinstance(value[0], int) else value
    return size
