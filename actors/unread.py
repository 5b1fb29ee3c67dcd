"""Prompts that nobody has read yet: which are long, and how much of those may wait.

A tokenizer reads a million characters in half a second at worst. So a call of many has a tokenizer of its own, and
short ones wait for none of it. Among long ones everybody waits behind the others, and they fill the memory: so their
characters are bounded. Only a client that sends long ones is told to try again later.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from pawl.actors.messages.generate import Submit

SHORT = 20_000
"""Characters, or token ids, of a call that is always let in: some ten milliseconds of a tokenizer."""
MOST_UNREAD = 4_000_000
"""Characters of longer ones that may wait together. One by itself may have any length."""


def long_characters(submits: Iterable[Submit], short: int = SHORT) -> list[int]:
    """Characters of each prompt of a call; 0 for all if together they are no more than `short`. Choices of one prompt
    share it: only the first of them counts."""
    counts, before = [], None
    for submit in submits:
        prompt: Any = submit.text if submit.text is not None else submit.token_ids or submit.chat
        counts.append(0 if prompt is before else size_of(prompt))
        before = prompt
    return counts if sum(counts) > short else [0] * len(counts)


def size_of(prompt: Any) -> int:
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
