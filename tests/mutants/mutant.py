"""A mutant: one defect of a kind that public engines have had, rebuilt in our own code by a small edit of its source.

`planted` puts the edits into the running process and takes them out again. The code of a function is exchanged in
place, so whoever has imported it meets the defect. An edit names the text that it replaces: when that text is no longer
there once, planting fails, and the mutant must be looked at again.
"""

from __future__ import annotations

import gc
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import _lru_cache_wrapper
from types import CodeType, FunctionType
from typing import Any, NamedTuple


class Group(StrEnum):
    """Of properties."""

    MEMORY = "Memory"
    LIFECYCLE = "Lifecycle"
    OUTPUTS = "Outputs"
    CONTROL = "Control"


class Edit(NamedTuple):
    """`old`, which occurs once in the source of `function`, becomes `new`."""

    function: Callable[..., Any] | property
    old: str
    new: str


class Mutant(NamedTuple):
    """One defect."""

    name: str
    group: Group
    property: str
    """The one that it breaks."""
    resembles: str
    """Issues of sglang (or of the engine named) that report a defect of this kind; empty: none is known to us."""
    what: str
    """What is wrong, in a sentence."""
    edits: tuple[Edit, ...]


class EditFails(Exception):
    """The source is not as the edit expects."""


def forget() -> None:
    """Drop all that this process remembers of what functions gave: it may be of code with a defect, what clients are to
    get for one."""
    gc.unfreeze()  # frozen objects are not found
    for each in gc.get_objects():
        if type(each) is _lru_cache_wrapper:  # some objects warn who asks them for their class
            each.cache_clear()


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The defect is in the code within this context. Raises EditFails."""
    sources: dict[FunctionType, str] = {}
    for edit in mutant.edits:
        function = _function(edit.function)
        source = sources.get(function) or textwrap.dedent(inspect.getsource(function))
        if source.count(edit.old) != 1:
            raise EditFails(f"{mutant.name}: {edit.old!r} occurs {source.count(edit.old)} times in {function}")
        sources[function] = source.replace(edit.old, edit.new)
    changed = {function: _compiled(function, source, mutant.name) for function, source in sources.items()}
    sound = {function: function.__code__ for function in changed}
    try:
        for function, code in changed.items():
            function.__code__ = code
        yield
    finally:
        for function, code in sound.items():
            function.__code__ = code


def _function(target: Callable[..., Any] | property) -> FunctionType:
    function = target.fget if isinstance(target, property) else target
    if not isinstance(function, FunctionType):
        raise EditFails(f"{target} is not written in Python")
    return function


def _compiled(function: FunctionType, source: str, name: str) -> CodeType:
    """The code of `function` with this source, in the module where it is."""
    module = compile(source, f"<mutant {name}>", "exec")
    made: dict[str, Any] = {}
    exec(module, function.__globals__, made)
    code: CodeType = _function(made[function.__name__]).__code__
    return code
