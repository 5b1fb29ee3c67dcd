"""Steps in which a request draws several tokens at once: which of them count.

A decoding segment of several positions begins with the token drawn last; drafts follow. The worker draws a token after
the first position, and one after each draft that was right: a run of 1 to `length` tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pawl.lifecycle.requests import RequestTable
from pawl.lifecycle.step import Bools, Int32s, StepResult
from pawl.loops.batch import Applied, ScheduledBatch, UInt8s
from pawl.memory.memory import Memory
from pawl.memory.page_pool import consecutive
from pawl.memory.trim import trim


class Runs(NamedTuple):
    """What counts of one step. A run ends with the first stop token, and with the last token that was asked for."""

    counts: Int32s
    """Tokens of each segment that samples, int32 [s]; those of requests that have left are not cut."""
    tokens: Int32s
    """int32 [sum of counts]"""
    drawn: Bools
    """Which of the worker's tokens these are, and are of requests that still want them; bool [tokens of the result]."""
    ends: Int32s
    """Positions of each segment's request that are computed and wanted now, int32 [segments]."""


def cut_runs(scheduled: ScheduledBatch, result: StepResult, counts: Int32s, fresh: Bools, table: RequestTable) -> Runs:
    """`counts`: tokens that the worker drew for each segment that samples; `fresh`: segments whose requests are still
    at work, bool [segments]."""
    batch = scheduled.batch
    wanted, kept = fresh[batch.samples], counts.copy()
    first = np.cumsum(counts) - counts
    for index in np.flatnonzero(wanted & (counts > 1)).tolist():
        row = int(scheduled.sampled_rows[index])
        run = result.tokens[first[index] : first[index] + counts[index]]
        stops = np.flatnonzero(np.isin(run, table.stop_tokens[row]))
        room = int(table.max_tokens[row] - table.num_tokens[row])
        kept[index] = min(len(run), room, int(stops[0]) + 1 if len(stops) else len(run))
    within = np.arange(len(result.tokens)) - np.repeat(first, counts) < np.repeat(kept, counts)
    ends = batch.starts + batch.lengths
    decoding = batch.chained & fresh
    ends[decoding] = (batch.starts[batch.samples] + kept)[decoding[batch.samples]]
    return Runs(kept, result.tokens[within], within & np.repeat(wanted, counts), ends)


def apply_runs(
    scheduled: ScheduledBatch,
    result: StepResult,
    counts: Int32s,
    fresh: Bools,
    events: UInt8s,
    table: RequestTable,
    memory: Memory,
) -> tuple[Applied, Runs]:
    """Append what counts to the requests, and give back what was computed for drafts that were wrong. `counts` and
    `fresh` as in `cut_runs`; `events` have been fired."""
    batch = scheduled.batch
    runs = cut_runs(scheduled, result, counts, fresh, table)
    wanted = fresh[batch.samples]
    rows, lengths, tokens = scheduled.sampled_rows[wanted], runs.counts[wanted], result.tokens[runs.drawn]
    told = np.repeat(rows, lengths)
    if len(rows):
        table.tokens[told, consecutive(table.num_tokens[rows], lengths)] = tokens
        table.num_tokens[rows] += lengths
    short = runs.ends < batch.starts + batch.lengths
    if np.count_nonzero(short):
        trim(memory, scheduled.transaction, batch.slots[short].astype(np.intp), runs.ends[short])
    last = tokens[np.cumsum(lengths) - 1]
    by_segment = np.zeros(len(scheduled.rows), np.int32)
    by_segment[batch.samples] = runs.counts
    return Applied(events, rows, told, tokens, last, runs.tokens, by_segment, runs.ends - batch.starts), runs
