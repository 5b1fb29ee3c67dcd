"""Reading files that strangers wrote: whatever their content makes a parser run into is told in one line.

Each reader (folders, GGUF files, vocabularies) puts `reading` around its parsing and names its own error class. Sizes
are bounded where they are read (`pawl.gpu.models.facts`), for an error in time is no help to who waits for it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MOST_JSON_BYTES = 64 << 20
"""Of a configuration or an index: the largest ones there are have a tenth of it."""
_DATA_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
_SHOWN = 200
"""Characters of a parser's own words that a message repeats."""


@contextmanager
def reading(what: str, refusal: Callable[[str], Exception]) -> Iterator[None]:
    """Turn what parsing `what` raises because of its content into `refusal(reason)`, a class that is none of Python's
    own for data."""
    try:
        yield
    except _DATA_ERRORS as error:
        raise refusal(f"{what} is truncated or damaged ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    """The class of an error and the beginning of its words."""
    words = " ".join(str(error).split())[:_SHOWN]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def read_object(path: Path, refusal: Callable[[str], Exception]) -> dict[str, Any]:
    """The JSON object that a file holds. Raises OSError, or `refusal(reason)` where it holds something else."""
    values = _read_json(path, refusal)
    if not isinstance(values, dict):
        raise refusal(f"{path.name} is not a JSON object")
    return values


def read_list(path: Path, refusal: Callable[[str], Exception]) -> list[Any]:
    """The JSON list that a file holds, as `read_object`."""
    values = _read_json(path, refusal)
    if not isinstance(values, list):
        raise refusal(f"{path.name} is not a JSON list")
    return values


def content_of(path: Path, refusal: Callable[[str], Exception], most: int = MOST_JSON_BYTES) -> bytes:
    """The bytes of a file. Raises OSError, or `refusal(reason)` for what has more than `most`, or is no file: who opens
    a pipe waits for somebody to write."""
    if os.path.lexists(path) and not path.is_file():
        raise refusal(f"{path.name} is not a file that can be read")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise refusal(f"{path.name} has more than {most >> 20} MiB")
    return content


def _read_json(path: Path, refusal: Callable[[str], Exception]) -> Any:
    content = content_of(path, refusal)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise refusal(f"{path.name} is not JSON ({one_line(error)})") from error
