"""Log-probabilities and vectors of a committed step as they are recorded: by request, no longer by slot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pawl.lifecycle.columns import Embedded, Float32s, Scores
from pawl.lifecycle.requests import RequestTable
from pawl.lifecycle.step import Bools, Int32s, StepResult
from pawl.memory.arrays import Indices
from pawl.memory.page_pool import consecutive


class _Scored(NamedTuple):
    """Some tokens; the matrices may be wider than a request asked for."""

    rows: Int32s
    positions: Int32s
    chosen: Float32s
    top_tokens: Int32s
    top: Float32s


def scores_of(
    result: StepResult, table: RequestTable, told: Indices, wanted: Bools, row_of_slot: dict[int, int]
) -> Scores | None:
    """Those of a result that go to clients; None where none does. Its tokens are in the table. `told` [n]: the rows of
    the tokens that are given out; `wanted` [tokens of the result]: which those are; `row_of_slot`: who is at work."""
    parts = [*_drawn(result, table, told, wanted), *_of_prompts(result, row_of_slot)]
    columns = [_as_asked(part, table) for part in parts]
    return Scores(*map(np.concatenate, zip(*columns, strict=True))) if columns else None


def embedded_of(result: StepResult, row_of_slot: dict[int, int]) -> Embedded | None:
    """Those of a result that go to clients; None where none does."""
    found = [(row_of_slot[each.slot], each.digest) for each in result.embeddings if each.slot in row_of_slot]
    if not found:
        return None
    rows, digests = zip(*found, strict=True)
    return Embedded(np.array(rows, np.int32), b"".join(digests))


def _drawn(result: StepResult, table: RequestTable, told: Indices, wanted: Bools) -> Iterator[_Scored]:
    if result.logprobs is None:
        return
    chosen = result.logprobs.chosen[wanted]
    asked = ~np.isnan(chosen)
    if not asked.any():
        return
    # Tokens of one request stand together.
    first = np.flatnonzero(np.diff(told, prepend=-1))
    lengths = np.diff(first, append=len(told)).astype(np.int32)
    positions = consecutive(table.num_tokens[told[first]] - lengths, lengths)
    top_tokens, top = result.logprobs.top_tokens[wanted], result.logprobs.top[wanted]
    yield _Scored(told[asked].astype(np.int32), positions[asked], chosen[asked], top_tokens[asked], top[asked])


def _of_prompts(result: StepResult, row_of_slot: dict[int, int]) -> Iterator[_Scored]:
    for part in result.prompt_logprobs:
        if part.slot in row_of_slot:
            rows = np.full(len(part.chosen), row_of_slot[part.slot], np.int32)
            positions = np.arange(part.start + 1, part.start + 1 + len(rows), dtype=np.int32)
            yield _Scored(rows, positions, part.chosen, part.top_tokens, part.top)


def _as_asked(part: _Scored, table: RequestTable) -> Scores:
    """With as many other tokens as each request asked for."""
    asked = {row: table.info(row).sampling.num_rivals or 0 for row in set(part.rows.tolist())}
    widest = part.top.shape[1]
    widths = np.array([min(asked[row], widest) for row in part.rows.tolist()], np.int32)
    kept = np.arange(widest) < widths[:, None]
    return Scores(part.rows, part.positions, part.chosen, widths, part.top_tokens[kept], part.top[kept])
