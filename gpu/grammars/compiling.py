"""A process of its own that tries grammars out: what takes too long there is killed, and what takes too much memory
dies alone. What passed, the parent compiles again: the library's own text of a compiled grammar repeats the whole
automaton for each of its rules, so that it takes longer to read than to compile at any size, and 64 tools are 190 MB.

    parent ── vocabulary, then grammars, one at a time ──► child ── why not, or nothing ──► parent

Frames are a length of 4 bytes and msgpack. The child ends when its input does.
"""

from __future__ import annotations

import signal
import subprocess
import weakref
from collections.abc import Sequence
from threading import Lock, Timer
from typing import Protocol

import msgspec

from pawl.gpu.children import python, start
from pawl.gpu.frames import read_frame, write_frame
from pawl.gpu.grammars.base import Compiled, GrammarRefused, NotCompiled, Words
from pawl.lifecycle.grammar import Grammar

SECONDS = 5
"""Of a processor, for one grammar."""
PATIENT_SECONDS = 60
"""The same where nobody waits: in an audit, what a server compiled in time must not be too slow."""
WALL = 8
"""Times as many may pass by the clock, on a machine that is busy."""
START_SECONDS = 120.0
"""Until the child has its library, on a machine that is busy."""
MEMORY = 256 << 20
"""Bytes that the child may have beyond those of its start, and its parent then takes as well."""

TOO_SLOW = "the grammar takes more than {} s to compile; make it smaller"
TOO_LARGE = f"the grammar takes more than {MEMORY >> 20} MiB to compile, or its library fails at it; make it smaller"
NO_PROCESS = "the process that compiles grammars does not start"


class Told(msgspec.Struct, array_like=True):
    """What the child says about one grammar."""

    refusal: str = ""
    """Empty: it compiles."""
    second: bool = False
    """In the other library: the first would keep less than the whole of it."""


class Setup(msgspec.Struct, array_like=True):
    """What the child must know first."""

    module: str
    """Whose `Library` it is."""
    entries: Sequence[bytes]
    end_ids: tuple[int, ...]
    seconds: int

    @property
    def words(self) -> Words:
        return Words(self.entries, self.end_ids)


class Library(Protocol):
    """A library with one vocabulary, which a grammar may end with its process."""

    def __init__(self, words: Words) -> None: ...

    @property
    def second(self) -> Library | None:
        """Another one, for what this one does not keep; None: there is none."""

    def compile(self, grammar: Grammar) -> Compiled:
        """Raises GrammarRefused."""


class TriedOut:
    """`GrammarBackend` of a module's `Library`: what another process could compile, this one compiles too, and follows
    outputs."""

    name: str

    def __init__(self, library: type[Library], words: Words, seconds: int) -> None:
        """`seconds`: what one grammar may take."""
        self._process = CompileProcess(library.__module__, words, seconds)
        self._library = library(words)
        self.close = weakref.finalize(self, self._process.close)
        """Ends the process; also done when the backend is collected."""

    def compile(self, grammar: Grammar) -> Compiled:
        """See `GrammarBackend.compile`."""
        library: Library | None = self._library
        if self._process.try_out(grammar).second:
            library = self._library.second
        assert library is not None
        return library.compile(grammar)


class CompileProcess:
    """The parent's side. It may be called from several threads, which take turns."""

    def __init__(self, module: str, words: Words, seconds: int = SECONDS) -> None:
        """`module` has the class `Library`. The child starts at once, and loads it meanwhile."""
        self._module = module
        self._words = words
        self._seconds = seconds
        self._lock = Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._start()

    def try_out(self, grammar: Grammar) -> Told:
        """Compile it there, and mask a few tokens. Raises GrammarRefused."""
        with self._lock:
            child = self._prepared()
            try:
                return self._ask(child, grammar)
            finally:
                if child.poll() is not None:
                    # The next one should not wait for the start of its successor.
                    self._start()

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def _start(self) -> None:
        self._child = start(
            python("pawl.gpu.grammars.child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._ready = False

    def _prepared(self) -> subprocess.Popen[bytes]:
        """A child that has its library and the vocabulary. Raises NotCompiled."""
        if self._child is None or self._child.poll() is not None:
            self._start()
        child = self._child
        assert child is not None
        if not self._ready:
            setup = Setup(self._module, self._words.entries, self._words.end_ids, self._seconds)
            if self._exchanged(child, msgspec.msgpack.encode(setup), START_SECONDS) is None:
                raise NotCompiled(NO_PROCESS)
            self._ready = True
        return child

    def _ask(self, child: subprocess.Popen[bytes], grammar: Grammar) -> Told:
        answer = self._exchanged(child, msgspec.msgpack.encode(grammar), WALL * self._seconds)
        if answer is None:
            ended_by = -child.wait()
            if ended_by == signal.SIGKILL:  # so much time by the clock says something about the machine, too
                raise NotCompiled(TOO_SLOW.format(self._seconds))
            raise GrammarRefused(TOO_SLOW.format(self._seconds) if ended_by == signal.SIGXCPU else TOO_LARGE)
        told = msgspec.msgpack.decode(answer, type=Told)
        if told.refusal:
            raise GrammarRefused(told.refusal)
        return told

    def _exchanged(self, child: subprocess.Popen[bytes], message: bytes, seconds: float) -> bytes | None:
        """The answer; None where the child has ended instead, or was killed because its time was over."""
        assert child.stdin is not None
        assert child.stdout is not None
        timer = Timer(seconds, child.kill)
        timer.daemon = True
        timer.start()
        try:
            write_frame(child.stdin, message)
            return read_frame(child.stdout)
        except OSError:
            return None
        finally:
            timer.cancel()
