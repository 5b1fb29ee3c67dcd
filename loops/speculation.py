"""Speculation: drafts of the tokens to come from a request's own text, and how many of them are worth a try.

Prompt lookup (Saxena 2023; vLLM's and SGLang's ngram): where the request's last tokens stand in its text once more,
what followed them there may follow again. A draft is checked in the step that it is part of: wrong ones cost the
arithmetic of their positions, and nothing else.

    known tokens    … a b c d e f … a b c              the last 3 stand once more: d e f is the draft
    one in flight   … a b c d e f … a b c ?            the guess for what is in flight is d, the draft e f

What is drafted follows from the request's tokens and from how its earlier drafts fared, so a replay drafts the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from pawl.lifecycle.requests import RequestTable
from pawl.lifecycle.step import Bools
from pawl.memory.arrays import Indices, Int32s

if TYPE_CHECKING:
    from pawl.loops.batch import ScheduledBatch
    from pawl.loops.requests import Counters

LONGEST_PAUSE = 64
"""Tokens that a request draws one by one at the most before it has another draft tried."""


KINDS = ("none", "ngram")
"""Where drafts come from, by name on the command line."""


class SpeculationConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What decides what is drafted."""

    num_speculative_tokens: int
    """Tokens of one draft at the most."""
    prompt_lookup_min: int
    """Last tokens of a request that must stand in its text once more."""
    prompt_lookup_max: int
    """Last tokens that are compared: of several places the one that agrees in the most of them, and of those the
    latest."""
    max_positions: int = 8
    """Of a step with drafts, those of all requests together: rows of one tile of the compiled kernels
    (`gpu/native/tile.h`). Up to there weights are read once and a position costs 2 % of a step; from there on it costs
    what it computes."""


class Drafts(NamedTuple):
    """What a step tries."""

    lengths: Int32s
    """Positions of each row, [n]: one, and one for each token of its draft."""
    tokens: Int32s
    """All drafts, one after the other."""


class Drafter:
    """Drafts for decoding requests.

    A draft that was accepted whole lets the next one be twice as long; else that is as long as what was accepted. After
    one of which nothing was accepted the request pauses, four times as long after each in a row, and then has one
    token tried.
    """

    def __init__(self, table: RequestTable, config: SpeculationConfig, *, most: int) -> None:
        """`most`: positions of a step that has drafts, at the most."""
        self.table = table
        self.config = config
        self.most = most

    def draft(self, rows: Indices, starts: Int32s) -> Drafts | None:
        """Drafts for `rows`, whose next positions are `starts` [n]; None where there are none."""
        table, room = self.table, self.most - len(rows)
        if room <= 0:
            return None
        num_tokens = table.num_tokens[rows]
        wanted = np.minimum(table.draft_length[rows], self.config.num_speculative_tokens)
        # The last output token is never an input.
        wanted = np.minimum(wanted, table.max_length[rows] - starts - 1)
        wanted[num_tokens < table.draft_from[rows]] = 0
        lengths, found = np.ones(len(rows), np.int32), []
        for index in np.flatnonzero(wanted > 0).tolist():
            if room <= 0:
                break
            known = int(num_tokens[index])
            in_flight = int(starts[index]) - known + 1
            text = table.tokens[rows[index], :known]
            tokens = self._continuation(text, in_flight + min(int(wanted[index]), room))[in_flight:]
            if len(tokens):
                lengths[index] += len(tokens)
                found.append(tokens)
                room -= len(tokens)
        return Drafts(lengths, np.concatenate(found)) if found else None

    def _continuation(self, text: Int32s, count: int) -> Int32s:
        """What may follow `text`, int32 [count], or [0]. What is found may reach the end of the text: then it begins
        again, as texts that repeat themselves do."""
        last = len(text) - 1
        places = np.flatnonzero(text[:last] == text[last])
        agreeing = 1
        while agreeing < self.config.prompt_lookup_max:
            longer = places[places >= agreeing]
            longer = longer[text[longer - agreeing] == text[last - agreeing]]
            if not len(longer):
                break
            places, agreeing = longer, agreeing + 1
        if not len(places) or agreeing < self.config.prompt_lookup_min:
            return text[:0]
        period = last - int(places[-1])
        return text[last + 1 - period + np.arange(count) % period]

    def snapshot(self) -> bytes:
        """How drafts have fared, of every live request in order of arrival."""
        return self.table.drafting[self.table.live_rows()].tobytes()

    def restore(self, plain: bytes) -> None:
        """The inverse, once the table is restored."""
        drafting, rows = self.table.drafting, self.table.live_rows()
        drafting[rows] = np.frombuffer(plain, np.int32).reshape(len(rows), drafting.shape[1])

    def committed(self, scheduled: ScheduledBatch, fresh: Bools, counts: Int32s, counters: Counters) -> None:
        """A step with runs is committed, which gave its segments so many tokens; `fresh` ones are still at work."""
        batch = scheduled.batch
        tried = np.flatnonzero(fresh & batch.chained & (batch.lengths > 1))
        drafted, accepted = batch.lengths[tried] - 1, counts[tried] - 1
        self.judge(scheduled.rows[tried], drafted, accepted)
        counters.drafts += len(tried)
        counters.draft_tokens += int(drafted.sum())
        counters.accepted_tokens += int(accepted.sum())

    def judge(self, rows: Indices, drafted: Int32s, accepted: Int32s) -> None:
        """So many tokens of the drafts of these rows were accepted; what is known of the rows is up to date."""
        table = self.table
        for row, tried, good in zip(rows.tolist(), drafted.tolist(), accepted.tolist(), strict=True):
            table.num_drafted[row] += tried
            table.num_accepted[row] += good
            if good:
                table.draft_length[row] = good if good < tried else max(int(table.draft_length[row]), 2 * good)
                table.draft_pause[row] = 0
            else:
                pause = min(max(4 * int(table.draft_pause[row]), 4), LONGEST_PAUSE)
                table.draft_length[row], table.draft_pause[row] = 1, pause
                table.draft_from[row] = table.num_tokens[row] + pause
