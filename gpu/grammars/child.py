"""The child of `pawl.gpu.grammars.compiling`: tries out the grammars that it is given, for one vocabulary.

It is nicer than the server, and has a bound on its memory. Nobody calls it but its parent.
"""

from __future__ import annotations

import importlib
import math
import os
import resource
import threading
import time
from pathlib import Path

import msgspec
import numpy as np

from pawl.gpu.children import ended_by_parent
from pawl.gpu.frames import read_frame, streams_of_child, write_frame
from pawl.gpu.grammars.base import Compiled, GrammarRefused, Words
from pawl.gpu.grammars.compiling import MEMORY, TOO_LARGE, Library, Setup, Told
from pawl.lifecycle.grammar import Grammar
from pawl.lifecycle.step import Int32s

MASK_SECONDS = 0.02
"""For the first mask: every step of every request would wait for such masks."""


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
    write_frame(target, b"ready")
    while (message := read_frame(source)) is not None:
        # Beyond it the system ends this process.
        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + setup.seconds, resource.RLIM_INFINITY))
        told = _tried(library, words, msgspec.msgpack.decode(message, type=Grammar))
        write_frame(target, msgspec.msgpack.encode(told))


def _tried(library: Library, words: Words, grammar: Grammar) -> Told:
    try:
        compiled = library.compile(grammar)
        mask = np.zeros(words.mask_words, np.int32)
        took = min(_seconds_of_a_mask(compiled, mask) for _ in range(3))
        if took > MASK_SECONDS:
            return Told(f"the grammar is too complex: a mask takes {1000 * took:.0f} ms; make it smaller")
    except GrammarRefused as error:
        return Told(str(error))
    except MemoryError:
        return Told(TOO_LARGE)
    return Told()


def _seconds_of_a_mask(compiled: Compiled, mask: Int32s) -> float:
    matcher = compiled.matcher()
    began = time.process_time()
    matcher.fill(mask)
    return time.process_time() - began


def _bound_memory() -> None:
    """Where the system can do that: what is in use now, and so much more."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    in_use = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))


if __name__ == "__main__":
    main()
