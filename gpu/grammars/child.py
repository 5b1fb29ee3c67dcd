"""The child of `pawl.gpu.grammars.compiling`: tries out the grammars that it is given, for one vocabulary.

It is nicer than the server, and has a bound on its memory. Nobody calls it but its parent.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from pawl.gpu.children import ended_by_parent
from pawl.gpu.frames import read_frame, streams_of_child, write_frame
from pawl.gpu.grammars.base import Compiled, GrammarRefused, Matcher, Words, forbid
from pawl.gpu.grammars.compiling import MEMORY, TOO_LARGE, Library, Setup, Told
from pawl.lifecycle.grammar import Grammar
from pawl.lifecycle.step import Int32s

MASK_SECONDS = 0.02
"""For a mask: every step of every request would wait for such masks."""
LOOKED_AT = 6
"""Masks from the beginning on: the first may be easy, and all that follow not."""
TRIES = 3
WALKS = (0.0, 0.5)
"""Which of the tokens that may come next comes, as a share of them in the order of their numbers."""

_WARNING = re.compile(rb"\.cc:\d+: Warning: ([^\n]*)")

STACK = 1 << 20
"""Bytes, for compiling: threads of the parent, where it is done again, have more."""


def main() -> None:
    """Until the input ends."""
    ended_by_parent()
    threading.stack_size(STACK)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


def _serve() -> None:
    source, target = streams_of_child()
    os.nice(5)
    first = read_frame(source)
    if first is None:
        return
    setup = msgspec.msgpack.decode(first, type=Setup)
    words = setup.words
    library: Library = importlib.import_module(setup.module).Library(words)
    _bound_memory()
    errors = Errors()
    write_frame(target, b"ready")
    while (message := read_frame(source)) is not None:
        # Beyond it the system ends this process.
        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + setup.seconds, resource.RLIM_INFINITY))
        errors.warned()  # of what was refused before
        told = _tried(library, words, msgspec.msgpack.decode(message, type=Grammar), errors.warned)
        write_frame(target, msgspec.msgpack.encode(told))


def _tried(library: Library, words: Words, grammar: Grammar, warned: Callable[[], str]) -> Told:
    second = False
    try:
        compiled = library.compile(grammar)
        if warning := warned():
            # It goes on, and does not keep what it ignores; in the parent it would say so in the log, grammar and all.
            compiled, second = _by_the_other(library, grammar, warning), True
        took = max(_slowest(compiled, words, share) for share in WALKS)
        if took > MASK_SECONDS:
            return Told(f"the grammar is too complex: a mask takes {1000 * took:.0f} ms; make it smaller")
    except GrammarRefused as error:
        return Told(str(error))
    except MemoryError:
        return Told(TOO_LARGE)
    return Told(second=second)


def _by_the_other(library: Library, grammar: Grammar, warning: str) -> Compiled:
    """What the library warns of, compiled by the other one. Raises GrammarRefused."""
    try:
        if library.second is not None:
            return library.second.compile(grammar)
    except GrammarRefused:
        pass
    raise GrammarRefused(f"the {grammar.kind} cannot be kept as a whole: {warning}")


class Errors:
    """What a library, which need not know of Python, prints where errors go."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the process
        os.dup2(self._file.fileno(), 2)

    def warned(self) -> str:
        """The first warning since the last call, without where in the library's source it comes from; empty: none."""
        self._file.seek(0)
        found = _WARNING.search(self._file.read(1 << 16))
        self._file.seek(0)
        self._file.truncate()
        return "" if found is None else found[1][:300].decode(errors="replace")


def _slowest(compiled: Compiled, words: Words, share: float) -> float:
    """Seconds of the slowest of the first masks, or of the first that takes too long."""
    matcher, slowest = compiled.matcher(), 0.0
    mask: Int32s = np.zeros(words.mask_words, np.int32)
    for _ in range(LOOKED_AT):
        slowest = max(slowest, _seconds_of_a_mask(matcher, mask))
        forbid(mask, words.end_ids)
        options = np.flatnonzero(np.unpackbits(mask.view(np.uint8), count=len(words.entries), bitorder="little"))
        if slowest > MASK_SECONDS or not len(options) or not matcher.accept(int(options[int(share * len(options))])):
            break
    return slowest


def _seconds_of_a_mask(matcher: Matcher, mask: Int32s) -> float:
    """At the fastest of three, where the first takes too long: the library may do it sooner once it has done it, so
    each is asked of another matcher."""
    fastest = math.inf
    for fresh in (matcher.fork() for _ in range(TRIES)):
        began = time.process_time()
        fresh.fill(mask)
        fastest = min(fastest, time.process_time() - began)
        if fastest <= MASK_SECONDS:
            break
    return fastest


def _bound_memory() -> None:
    """Where the system can do that: what is in use now, and so much more."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    in_use = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))


if __name__ == "__main__":
    main()
