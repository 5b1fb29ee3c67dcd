"""How much longer a tokenizer may make a text before it cuts it into tokens.

Replacements after one another multiply: a file of some kilobytes could make terabytes of one word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

MOST_GROWTH = 64
"""Times as many bytes; a space that becomes a mark of its own is 3, and few tokenizers replace more."""


def growth(tokenizer: Tokenizer) -> float:
    """Times as many bytes as a text has, at most, when it is normalised, or when tokens become text again."""
    return max(_growth(part) for part in (tokenizer.normalizer, tokenizer.decoder))


def _growth(part: Any) -> float:
    times = 1.0
    for stage in _stages(json.loads(part.__getstate__())) if part is not None else ():
        times *= _times(stage)
    return times


def _stages(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A stage, or all that stand in a sequence, in their order."""
    inner = state.get("normalizers", state.get("decoders"))
    if inner is None:
        yield state
    else:
        for each in inner:
            yield from _stages(each)


def _times(stage: dict[str, Any]) -> float:
    match stage:
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content} if pattern:
            return max(1.0, len(content.encode()) / len(pattern.encode()))
        case {"type": "Replace", "content": content}:  # an expression may fit nothing, and so everywhere
            return 1.0 + len(content.encode())
        case {"type": "Prepend", "prepend": content}:
            return 1.0 + len(content.encode())
    return 1.0
