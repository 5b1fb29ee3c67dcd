"""A grammar that begins where the model has thought."""

from __future__ import annotations

from pawl.gpu.grammars.base import Compiled, Matcher, Words, allow, forbid
from pawl.lifecycle.grammar import Reasoning
from pawl.lifecycle.step import Int32s


class AfterReasoning:
    """`Compiled`: another one, before which there may be reasoning."""

    def __init__(self, compiled: Compiled, reasoning: Reasoning, words: Words) -> None:
        self._compiled = compiled
        self._reasoning = reasoning
        self._words = words
        self.num_bytes = compiled.num_bytes

    def matcher(self) -> Matcher:
        return ReasoningMatcher(self._compiled.matcher(), self._reasoning, self._words)


class ReasoningMatcher:
    """`Matcher`. Reasoning is of any tokens but those that end an output."""

    def __init__(self, inner: Matcher, reasoning: Reasoning, words: Words) -> None:
        self._inner = inner
        self._reasoning = reasoning
        self._words = words
        self._num_tokens = 0
        self._skipped: int | None = None
        """Tokens before the grammar, its mark included, once it has begun."""

    @property
    def terminated(self) -> bool:
        return self._inner.terminated

    @property
    def _thinks(self) -> bool:
        return self._skipped is None and (self._reasoning.inside or self._num_tokens > 0)

    def fill(self, bits: Int32s) -> None:
        if self._thinks:
            bits[:] = -1
            forbid(bits, self._words.end_ids)
            return
        self._inner.fill(bits)
        if self._skipped is None and self._reasoning.begin is not None:
            allow(bits, (self._reasoning.begin,))

    def accept(self, token: int) -> bool:
        if self._thinks:
            if token in self._words.end_ids:
                return False
            if token == self._reasoning.end:
                self._skipped = self._num_tokens + 1
        elif self._skipped is None and token == self._reasoning.begin:
            pass  # it thinks
        elif self._inner.accept(token):
            self._skipped = self._skipped or 0
        else:
            return False
        self._num_tokens += 1
        return True

    def rollback(self, count: int) -> None:
        if self._skipped is not None:
            self._inner.rollback(min(count, self._num_tokens - self._skipped))
        self._num_tokens -= count
        if self._skipped is not None and self._num_tokens < max(self._skipped, 1):
            self._skipped = None

    def fork(self) -> Matcher:
        forked = ReasoningMatcher(self._inner.fork(), self._reasoning, self._words)
        forked._num_tokens, forked._skipped = self._num_tokens, self._skipped
        return forked
