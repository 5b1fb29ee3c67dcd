"""The matchers of the requests that a runner has in its slots, and the masks of one step.

A matcher is a fold over its request's output. It is made when the request enters its slot, from what the request has
said before (after a retraction or a lost step), and goes on where each drawn token becomes known on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import structlog

from pawl.gpu.grammars.base import GrammarRefused, Matcher, forbid
from pawl.gpu.grammars.cache import Grammars
from pawl.lifecycle.step import Bools, Int32s, SlotAssignment

log = structlog.get_logger("pawl.gpu.grammars")


class Ruled:
    """The rows of one step that have a grammar."""

    def __init__(self, rows: Int32s, matchers: Sequence[Matcher | None], bits: Int32s) -> None:
        self.rows = rows
        """Which of the sampled rows, [n]."""
        self.bits = bits
        """Their masks, int32 [n, mask_words]."""
        self._matchers = matchers

    def moved(self, rows: Int32s) -> Ruled:
        """The same masks for other rows."""
        return Ruled(rows, self._matchers, self.bits)

    def spread(self, count: int) -> Int32s:
        """Masks of all `count` sampled rows, int32 [count, mask_words]; those without a grammar allow everything."""
        if len(self.rows) == count:
            return self.bits
        masks = np.full((count, self.bits.shape[1]), -1, np.int32)
        masks[self.rows] = self.bits
        return masks

    def nothing_but(self, row: int, tokens: Int32s) -> bool:
        """Whether the grammar of a sampled row, where it has one, allows none but some of these tokens."""
        found = np.flatnonzero(self.rows == row)
        if not len(found):
            return False
        left = self.bits[found[0]].copy()
        forbid(left, tokens)
        return not left.any()

    def accept(self, tokens: Int32s) -> Bools | None:
        """The sampled rows of the step got these `tokens`. Which of them their grammars refuse; None: none."""
        refused = np.zeros(len(tokens), np.bool_)
        for row, matcher in zip(self.rows.tolist(), self._matchers, strict=True):
            # What is drawn after the end is of a step that was launched before the end was known: nobody wants it.
            if matcher is None or not (matcher.terminated or matcher.accept(int(tokens[row]))):
                refused[row] = True
        return refused if refused.any() else None


class GrammarRows:
    """One matcher for each slot whose request has a grammar."""

    def __init__(self, grammars: Grammars | None, num_slots: int) -> None:
        """Without `grammars`, a request that has one is refused when it draws."""
        self._grammars = grammars
        self._ruled = np.zeros(num_slots, np.bool_)
        self._matchers: dict[int, Matcher | None] = {}
        """None: the output so far is none of its grammar, or there is no such grammar here."""

    def reset(self) -> None:
        """Forget every slot."""
        self._ruled[:] = False
        self._matchers.clear()

    def admit(self, admissions: Sequence[SlotAssignment]) -> None:
        """Take over the grammars of requests that enter a slot, and go through what these have said."""
        for admission in admissions:
            self._ruled[admission.slot] = admission.sampling.grammar is not None
            self._matchers.pop(admission.slot, None)
            if admission.sampling.grammar is not None:
                self._matchers[admission.slot] = self._begin(admission)

    def _begin(self, admission: SlotAssignment) -> Matcher | None:
        grammar = admission.sampling.grammar
        if grammar is None or self._grammars is None:
            return None
        try:
            matcher = self._grammars.get(grammar).matcher()
        except GrammarRefused as error:
            log.warning("a grammar cannot be compiled again", reason=type(error).__name__)  # whose words may quote it
            return None
        output = admission.history[admission.num_prompt :].tolist()
        return matcher if all(map(matcher.accept, output)) else None

    def any(self, slots: Int32s) -> bool:
        """Whether any of these slots has a grammar."""
        return bool(self._ruled[slots].any())

    def masks(self, slots: Int32s) -> Ruled | None:
        """The masks of the next tokens of `slots` [n]; None where none of them has a grammar. All tokens drawn for them
        before must have been accepted."""
        rows = np.flatnonzero(self._ruled[slots]).astype(np.int32)
        if not len(rows):
            return None
        matchers = [self._matchers[slot] for slot in slots[rows].tolist()]
        words = 0 if self._grammars is None else self._grammars.words.mask_words
        bits = np.full((len(rows), words), -1, np.int32)
        for matcher, mask in zip(matchers, bits, strict=True):
            if matcher is not None and not matcher.terminated:
                matcher.fill(mask)
        return Ruled(rows, matchers, bits)


def unpacked(bits: Int32s, vocab_size: int) -> Bools:
    """Masks as truth values, bool [n, vocab_size]; tokens beyond the masks are not allowed."""
    allowed = np.unpackbits(bits.view(np.uint8), axis=1, count=min(vocab_size, bits.shape[1] * 32), bitorder="little")
    if allowed.shape[1] < vocab_size:
        allowed = np.pad(allowed, ((0, 0), (0, vocab_size - allowed.shape[1])))
    return allowed.view(np.bool_)
