"""Every live request as one row of a structure of arrays, so that a step's work is a few vector operations.

A row is taken at submission and given back after the terminal event, once no step in flight names it. The state
column is written by `Machine`'s executors' callers in one place only: `move` and `move_rows` below.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.machine import advance, advance_rows
from pawl.lifecycle.namespaces import adapter_of
from pawl.lifecycle.request import MAX_STOP_TOKENS, SamplingParameters
from pawl.lifecycle.states import Cause, Event, State

Indices: TypeAlias = NDArray[np.intp]
"""Rows or slots. Of all integers numpy looks up these without converting them first, in a tenth of the time."""
Int32s: TypeAlias = NDArray[np.int32]
UInt8s: TypeAlias = NDArray[np.uint8]

NOT_ADMITTED = np.iinfo(np.int64).max
"""In the column `order`."""
EVERY = np.iinfo(np.int64).max
"""In place of a number of tokens: as many as there are."""
FIRST_DRAFT = 2
"""Tokens of a request's first draft at the most."""
_NO_DRAFTS: Int32s = np.array((FIRST_DRAFT, 0, 0, 0, 0), np.int32)
"""`RequestTable.drafting` of a new request."""
_NO_STOPS: Int32s = np.full(MAX_STOP_TOKENS, -1, np.int32)

_STATES: dict[int, State] = {state: state for state in State}
"""By number: in an eighth of the time that the enumeration takes to look one up."""
_PAGE = mmap.PAGESIZE // 4
"""Tokens in a page of the machine's memory."""
_HUGE = (4 << 20) // 4
"""Tokens for which numpy asks for pages of another size."""
FEW = 2
"""Up to so many rows one after the other take less time than calls of numpy for all of them."""


class RequestInfo(msgspec.Struct, eq=False):
    """The part of a request that no vector operation needs."""

    request: int
    rid: str
    sampling: SamplingParameters
    namespace: str
    submitted: float
    """Monotonic seconds."""
    passthrough: Any = None
    """What the scheduler hands on to the detokenizer, unread."""
    admitted: float | None = None
    first_token: float | None = None
    num_cached: int = 0
    """Prompt tokens that the prefix cache had, at the first admission."""
    most_cached: int = EVERY
    """No more than so many of them count: what comes behind was computed elsewhere for this very request."""
    num_retractions: int = 0
    strikes: int = 0
    """Lost steps this request was part of."""
    num_older: int = 0
    """Output tokens that other weights have drawn than those that are served."""
    num_resumed: int = 0
    """Those of `num_retractions` that came before this engine took it: others had it until they were lost."""


class RequestTable:
    """`capacity` rows. Columns are int32 unless said otherwise; a free row's values mean nothing."""

    def __init__(self, capacity: int, max_context: int) -> None:
        self.capacity = capacity
        self.state: UInt8s = np.zeros(capacity, np.uint8)
        self.slot: Indices = np.zeros(capacity, np.intp)
        self.num_prompt: Int32s = np.zeros(capacity, np.int32)
        self.num_tokens: Int32s = np.zeros(capacity, np.int32)
        """Known tokens: prompt and committed output."""
        self.max_tokens: Int32s = np.zeros(capacity, np.int32)
        """Prompt plus the output asked for."""
        self.max_length: Int32s = np.zeros(capacity, np.int32)
        """Positions that will ever be computed: the last output token is never an input."""
        self.num_computed: Int32s = np.zeros(capacity, np.int32)
        """Positions whose keys and values are committed; kept while PREFILLING."""
        self.attempt: Int32s = np.zeros(capacity, np.int32)
        """Rises when the request leaves work: tells a stale token from a live one."""
        self.order: NDArray[np.int64] = np.zeros(capacity, np.int64)
        """Rank of the first admission: the smallest running one is protected."""
        self.adapter: Int32s = np.zeros(capacity, np.int32)
        """Number of the adapter that its namespace names; 0: none."""
        self.priority: NDArray[np.int64] = np.zeros(capacity, np.int64)
        self.deadline: NDArray[np.float64] = np.full(capacity, np.inf)
        self.drafting: Int32s = np.zeros((capacity, 5), np.int32)
        """The next five columns, as one array."""
        self.draft_length: Int32s = self.drafting[:, 0]
        """Tokens of the request's next draft at the most."""
        self.draft_pause: Int32s = self.drafting[:, 1]
        """Tokens between its last draft, of which nothing was accepted, and the next; else 0."""
        self.draft_from: Int32s = self.drafting[:, 2]
        """Known tokens from which on it has drafts."""
        self.num_drafted: Int32s = self.drafting[:, 3]
        """Tokens of drafts that were tried."""
        self.num_accepted: Int32s = self.drafting[:, 4]
        """Those of them that were accepted."""
        self.stop_tokens: Int32s = np.full((capacity, MAX_STOP_TOKENS), -1, np.int32)
        self.tokens: Int32s = _untouched(capacity, max_context + 1)
        """[capacity, max_context + 1 at least], of requests that have been admitted; touched as far as these reach."""
        self._all_tokens = self.tokens.reshape(-1)
        self._prompts: dict[int, Int32s] = {}
        """By row, of requests that have never been admitted: a queue may be long, and a row of `tokens` takes pages."""
        self.infos: list[RequestInfo | None] = [None] * capacity
        self.row_of: dict[int, int] = {}
        """request number -> row, live requests only."""
        self._free: list[int] = list(range(capacity - 1, -1, -1))

    def __len__(self) -> int:
        return len(self.row_of)

    @property
    def full(self) -> bool:
        return not self._free

    def open(self, info: RequestInfo, tokens: Int32s, priority: int, deadline: float, num_output: int = 0) -> int:
        """A row for a new request; its state is NEW until the first `move`. The last `num_output` of its tokens are
        output that it has had elsewhere. `tokens`, int32 [n], are kept until the request goes to work, as they are
        where they own their memory: nobody writes to them any more."""
        # Taken when every column is written: what cannot be written leaves the row free.
        row = self._free[-1]
        count = len(tokens)
        self.state[row] = State.NEW
        self.num_tokens[row] = count
        self.num_computed[row] = 0
        self.priority[row] = priority
        self.deadline[row] = deadline
        self.order[row] = NOT_ADMITTED
        self.drafting[row] = _NO_DRAFTS
        # A prompt longer than the table is wide is refused before anything reads it.
        # Those that came in a message would keep it, and need not lie as numbers do.
        kept = (tokens if tokens.flags.owndata else tokens.copy())[: self.tokens.shape[1]]
        self.describe(row, info, count - num_output)
        self.row_of[info.request] = row
        self._prompts[row] = kept
        if num_output:
            self.place(row)
        self._free.pop()
        return row

    def describe(self, row: int, info: RequestInfo, num_prompt: int) -> None:
        """Write what follows from the request itself, whatever it has done."""
        wanted, stops = info.sampling.max_new_tokens, info.sampling.stop_token_ids
        self.num_prompt[row] = num_prompt
        self.max_tokens[row] = num_prompt + wanted
        self.max_length[row] = max(num_prompt, num_prompt + wanted - 1)
        self.stop_tokens[row] = _NO_STOPS
        if stops:
            self.stop_tokens[row, : len(stops)] = stops
        self.adapter[row] = adapter_of(info.namespace)
        self.infos[row] = info

    def withdraw(self, request: int) -> None:
        """Take back an `open`, of which perhaps only a part was done: nobody has heard of the request."""
        row = self.row_of.pop(request, None)
        if row is not None:
            self.infos[row] = None
            self._prompts.pop(row, None)
            if row not in self._free:
                self._free.append(row)

    def live_rows(self) -> Indices:
        """Rows of all live requests in order of arrival, [n]."""
        return np.fromiter(self.row_of.values(), np.intp, len(self.row_of))

    def info(self, row: int) -> RequestInfo:
        """The info of a live row."""
        info = self.infos[row]
        if info is None:
            raise KeyError(f"row {row} is free")
        return info

    def state_of(self, row: int) -> State:
        """Where the request of a row is."""
        return _STATES[self.state.item(row)]

    def known(self, row: int) -> Int32s:
        """Known tokens of a live row, int32 [n], a view: prompt and committed output."""
        prompt = self._prompts.get(row)
        return self.tokens[row, : self.num_tokens[row]] if prompt is None else prompt

    def place(self, row: int) -> None:
        """The request goes to work: from now on its known tokens are in `tokens`."""
        prompt = self._prompts.get(row)
        if prompt is not None:
            self.tokens[row, : len(prompt)] = prompt
            del self._prompts[row]

    def close(self, row: int) -> None:
        """The request has had its terminal event: its number is forgotten, its row waits for `free`."""
        self.attempt[row] += 1
        del self.row_of[self.info(row).request]

    def free(self, row: int) -> None:
        """No step in flight names the row any more."""
        self.infos[row] = None
        self._prompts.pop(row, None)
        self._free.append(row)

    def free_rest(self) -> None:
        """No step is in flight: every row that is not of a live request is free, whatever was said of it."""
        live = set(self.row_of.values())
        self._free = [row for row in range(self.capacity - 1, -1, -1) if row not in live]
        for row in self._free:
            self.infos[row] = None
            self._prompts.pop(row, None)

    def move(self, row: int, event: Event, cause: Cause = Cause.NONE) -> State:
        """Fire one event for one request. Raises IllegalTransition."""
        state = advance(self.state.item(row), event, cause, self.info(row).request)
        self.state[row] = state
        return state

    def move_rows(self, rows: Indices, events: UInt8s) -> None:
        """Fire one event for each of many requests. Raises IllegalTransition, then nothing has changed."""
        self.state[rows] = advance_rows(self.state[rows], events)

    def complete(self, rows: Indices, tokens: Int32s) -> Sequence[int]:
        """Indices of those of `rows` that have all they wanted, or drew a stop token. `tokens`: the last of each."""
        if len(rows) <= FEW:
            each = enumerate(zip(rows.tolist(), tokens.tolist(), strict=True))
            return [index for index, (row, token) in each if self._ends_with(row, token)]
        done = self.num_tokens[rows] >= self.max_tokens[rows]
        stops = self.stop_tokens.take(rows, axis=0) == tokens[:, None]
        if np.count_nonzero(stops):
            done |= stops.any(1)
        return np.flatnonzero(done).tolist() if np.count_nonzero(done) else ()

    def _ends_with(self, row: int, token: int) -> bool:
        return bool(self.num_tokens[row] >= self.max_tokens[row]) or token in self.info(row).sampling.stop_token_ids

    def undo_rows(self, rows: Indices, states: UInt8s, num_tokens: Int32s, drafting: Int32s | None) -> None:
        """Put back what was there before a step that could not be committed; `drafting` is None where it stays."""
        self.state[rows], self.num_tokens[rows] = states, num_tokens
        if drafting is not None:
            self.drafting[rows] = drafting

    def undo(self, row: int, state: State) -> None:
        """Put back the state from before a step that is rolled back."""
        self.state[row] = state

    def append(self, rows: Indices, tokens: Int32s) -> None:
        """One more token for each of distinct rows."""
        at = self.num_tokens[rows]
        if len(rows) <= FEW:
            for row, place, token in zip(rows.tolist(), at.tolist(), tokens.tolist(), strict=True):
                self.tokens[row, place] = token
                self.num_tokens[row] = place + 1
            return
        # One flat index: numpy takes several times as long for a pair of them.
        self._all_tokens[rows * self.tokens.shape[1] + at] = tokens
        self.num_tokens[rows] = at + 1

    def output(self, row: int) -> Int32s:
        """Committed output tokens of `row`, a view."""
        return self.tokens[row, self.num_prompt[row] : self.num_tokens[row]]


def _untouched(rows: int, width: int) -> Int32s:
    """Zeros, [rows, at least width], of which only what is written takes memory. For many numpy would ask for huge
    pages, which make whole rows resident. Rows longer than a page then begin with one: a prompt that straddles two
    makes both so."""
    if rows * width < _HUGE:
        return np.zeros((rows, width), np.int32)
    if width > _PAGE:
        width += -width % _PAGE
    try:
        pages = mmap.mmap(-1, max(4 * rows * width, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{rows} requests of {width} tokens, at work or waiting, have no room") from error
    with suppress(AttributeError, OSError):  # a system without huge pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.ndarray((rows, width), np.int32, pages)
