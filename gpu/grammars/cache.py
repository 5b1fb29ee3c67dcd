"""Compiled grammars by their content: what the grammar actor makes and workers use. Safe for several threads."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from threading import Lock

from pawl.gpu.grammars.base import Compiled, GrammarBackend, GrammarRefused, NotCompiled, Words, is_stuck
from pawl.gpu.grammars.reasoning import AfterReasoning
from pawl.lifecycle.grammar import Grammar

CACHE_BYTES = 256 << 20
MAX_ENTRIES = 1024
MAX_COMPILED = 64 << 20
"""Bytes of one compiled grammar."""
MAX_REFUSED = 1024
"""Refusals that are remembered, those that were asked for last."""
AGAIN_S = 60.0
"""After which a grammar is tried again that was not compiled for a reason which is not its own, as on a busy machine:
each try may take as long, and all other grammars wait for it."""


class Grammars:
    """The grammars of one vocabulary. One that a live request needs stays; of the others, those used last."""

    def __init__(
        self,
        name: str,
        make_backend: Callable[[Words], GrammarBackend],
        words: Words,
        limit_bytes: int = CACHE_BYTES,
        *,
        eager: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make_backend` makes the backend `name`: when it is asked to be prepared, which `eager` grammars are to be at
        the start, or when the first grammar comes. Its library may take seconds to load."""
        self.name = name
        self.words = words
        self.eager = eager
        self._make_backend = make_backend
        self._backend: GrammarBackend | None = None
        self._limit_bytes = limit_bytes
        self._lock = Lock()
        self._compiled: OrderedDict[Grammar, Compiled] = OrderedDict()
        """The least recently used first."""
        self._clock = clock
        self._refused: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        """Digest of a grammar -> why it is refused, and until when; the least recently asked for first."""
        self._held: Counter[Grammar] = Counter()

    def hold(self, grammar: Grammar) -> Grammar:
        """A request needs this one, which is given back, until it is released: it is compiled, unless it was before.
        Raises GrammarRefused, then it is not held."""
        with self._lock:
            self._held[_bare(grammar)] += 1
        try:
            self.get(grammar)
            return grammar
        except BaseException:
            self.release(grammar)
            raise

    def release(self, grammar: Grammar) -> None:
        """Undo one `hold`."""
        bare = _bare(grammar)
        with self._lock:
            self._held[bare] -= 1
            if not self._held[bare]:
                del self._held[bare]
            self._trim()

    def get(self, grammar: Grammar) -> Compiled:
        """The compiled grammar. Raises GrammarRefused, at once where it did so before: for the grammar's own sake, or
        not long ago."""
        compiled = self._get(_bare(grammar))
        if grammar.reasoning is None:
            return compiled
        return AfterReasoning(compiled, grammar.reasoning, self.words)

    def _get(self, grammar: Grammar) -> Compiled:
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
                return found
            digest = _digest(grammar)
            why, until = self._refused.get(digest, ("", -math.inf))
            if self._clock() < until:
                self._refused.move_to_end(digest)
                raise GrammarRefused(why)
        try:
            made = self._made(grammar)
        except GrammarRefused as error:
            until = self._clock() + AGAIN_S if isinstance(error, NotCompiled) else math.inf
            with self._lock:
                self._refused[digest] = str(error), until
                if len(self._refused) > MAX_REFUSED:
                    self._refused.popitem(last=False)
            raise
        with self._lock:
            self._compiled[grammar] = made
            self._trim()
        return made

    def _made(self, grammar: Grammar) -> Compiled:
        made = self.prepare().compile(grammar)
        if made.num_bytes > MAX_COMPILED:
            raise GrammarRefused(
                f"the grammar takes more than {MAX_COMPILED >> 20} MiB when it is compiled; shorten it"
            )
        if is_stuck(made.matcher(), self.words):
            raise GrammarRefused("the grammar allows nothing at all: no output of this vocabulary begins as it says")
        return made

    def prepare(self) -> GrammarBackend:
        """The backend, ready to compile."""
        with self._lock:
            if self._backend is None:
                self._backend = self._make_backend(self.words)
            return self._backend

    @property
    def num_held(self) -> int:
        """Holds that are not released."""
        return self._held.total()

    def _trim(self) -> None:
        total = sum(made.num_bytes for made in self._compiled.values())
        for grammar in list(self._compiled):
            if total <= self._limit_bytes and len(self._compiled) <= MAX_ENTRIES:
                return
            if grammar not in self._held:
                total -= self._compiled.pop(grammar).num_bytes


def _digest(grammar: Grammar) -> bytes:
    """Of what is compiled: the text of a refused grammar is not kept."""
    return hashlib.sha256(f"{grammar.kind}\n{grammar.text}".encode(errors="surrogatepass")).digest()


def _bare(grammar: Grammar) -> Grammar:
    """What is compiled of it."""
    return grammar if grammar.reasoning is None else Grammar(grammar.kind, grammar.text)
