"""Property `session_atomicity`: what turns go on from, and what is left of those that do not finish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from pawl.lifecycle.machines.session import MOST_USES
from pawl.lifecycle.namespaces import adapter_of
from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Contained, Delivered, Int32s, Submitted, Transition, int32s
from pawl.lifecycle.states import Cause, Event, State

_NOTHING = np.empty(0, np.int32)


@dataclass(eq=False)
class _Turn:
    """A turn, finished or live."""

    rid: str
    parent: str | None
    kept: int
    """Tokens that it shares with its parent."""
    tokens: Int32s
    num_prompt: int
    replaces: frozenset[str] = frozenset()
    """Finished turns that leave when it finishes, and with them all that went on from them."""
    why_not: str = ""
    """Why it can be no turn: then it must be refused."""
    most: int = 0
    """Tokens beyond those it shares that it may come to have."""
    short: bool = False
    """Its recorded prompt is its own tokens alone: then it must be refused, too."""


@dataclass(eq=False)
class _Session:
    capacity: int
    streaming: bool
    closing: bool = False
    num_uses: int = 1
    doubtful: bool = False
    """The engine failed when an order about it was the last that it had: perhaps it was carried out."""
    turns: dict[str, _Turn] = field(default_factory=dict)
    live: dict[int, _Turn] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Tokens that its finished turns hold; what they share counts once."""
        return sum(len(turn.tokens) - turn.kept for turn in self.turns.values())

    def line(self, rid: str | None) -> Iterator[str]:
        """The turn of this name, and those that it goes on from."""
        while rid is not None and rid in self.turns:
            yield rid
            rid = self.turns[rid].parent


class _Coming(NamedTuple):
    """A turn whose request comes next."""

    request: int
    session: str
    turn: _Turn
    new: Int32s
    """Tokens of its own."""
    max_new_tokens: int
    scored_from: int
    clears: bool
    """Whether it replaces all that goes on from its parent, and not one live turn."""

    def is_busy(self, session: _Session, other: _Turn) -> bool:
        """Whether a live turn stands in the way."""
        mine = self.turn.parent
        below = mine is None or mine in session.line(other.parent)
        replaced = any(rid in other.replaces for rid in session.line(mine))
        return session.streaming or replaced or (self.clears and below)


def _tokens(session: _Session, rid: str | None) -> Int32s:
    return _NOTHING if rid is None else session.turns[rid].tokens


def _cut(known: Int32s, num_prompt: int, fields: dict[str, Any]) -> int:
    """How many of the known tokens stay."""
    most = num_prompt if fields.get("drop_previous_output") is True else len(known)
    return len(known[:most][: fields.get("offset") or None])


class SessionAtomicity(Property):
    """A turn comes as it was announced, and its prompt is what it goes on from, as that has finished, and its own
    tokens. A turn that is aborted or refused leaves its session as it was. On a branch one turn is live; a session that
    closes takes none, its turns hold no more tokens than it may, and it refuses none without a reason."""

    name: ClassVar[str] = "session_atomicity"

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}
        self._of: dict[int, str] = {}
        """Live turns by number of the request -> session."""
        self._coming: _Coming | None = None
        """The turn that comes next."""
        self._newest = ""
        """The session that the newest order is about."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        for name, capacity, _, streaming, phase, num_uses, turns, live in beginning.sessions:
            session = self._sessions[name] = _Session(capacity, streaming, phase != "open", num_uses)
            for rid, parent, kept, own, num_prompt, *_ in turns:
                tokens = np.concatenate((_tokens(session, parent)[:kept], np.frombuffer(own, np.int32)))
                session.turns[rid] = _Turn(rid, parent, kept, tokens, num_prompt)
            for rid, parent, kept, own, num_prompt, request, most, replaces in live:
                tokens = np.concatenate((_tokens(session, parent)[:kept], np.frombuffer(own, np.int32)))
                turn = _Turn(rid, parent, kept, tokens, num_prompt, frozenset(replaces), most=most)
                session.live[request] = turn
                self._of[request] = name
        return ()

    @on(Delivered)
    def _delivered(self, record: Delivered, history: History) -> Sequence[Violation]:
        missing = self.finish(history) if record.kind == "begin_turn" else ()
        self._ordered(record, history)
        return missing

    @on(Submitted)
    def _arrived(self, record: Submitted, history: History) -> Sequence[Violation]:
        coming, self._coming = self._coming, None
        return () if coming is None else tuple(self._submitted(coming, record, history))

    @on(Contained)
    def _failed(self, record: Contained, history: History) -> Sequence[Violation]:
        self._coming = None
        if self._newest:
            self._sessions.setdefault(self._newest, _Session(0, False, closing=True)).doubtful = True
        return ()

    def finish(self, history: History) -> Sequence[Violation]:
        if self._coming is None:
            return ()
        return (self.violation(history, "its turn was announced, and it never came", self._coming.request),)

    @on(Event.ADMIT, *ENDS)
    def _went_on(self, record: Transition, history: History) -> Sequence[Violation]:
        return tuple(self._moved(record, history)) if record.request in self._of else ()

    def _ordered(self, record: Delivered, history: History) -> None:
        kind, fields = record.kind, record.fields
        name = str(fields.get("session", fields.get("session_id", "")))
        session, self._newest = self._sessions.get(name), name
        match kind:
            case "open_session" if session is None:
                num_uses = record.number * MOST_USES + 1
                streaming = fields.get("streaming") is True
                self._sessions[name] = _Session(int(fields["capacity"]), streaming, num_uses=num_uses)
            case "close_session" if session is not None:
                session.closing = True
                self._settle(name, session)
            case "expire_session" if session is not None and session.num_uses == fields["num_uses"]:
                session.closing |= not session.live
                self._settle(name, session)
            case "begin_turn":
                known = session if session is not None else _Session(0, False, closing=True)
                turn, new = self._turn(known, fields, history), np.array(fields["tokens"], np.int32)
                turn.tokens = np.concatenate((turn.tokens, new))
                turn.num_prompt = len(turn.tokens)
                clears = fields.get("replace") is True and turn.parent == fields.get("parent")
                scored_from = int(fields.get("scored_from", 0))
                most = int(fields["max_new_tokens"])
                self._coming = _Coming(int(fields["request"]), name, turn, new, most, scored_from, clears)

    def _submitted(self, coming: _Coming, record: Submitted, history: History) -> Iterator[Violation]:
        if coming.request != record.request:
            yield self.violation(history, f"request {coming.request} was announced, whose turn it is", record.request)
            return
        tokens, turn = int32s(record.tokens), coming.turn
        if (turn.rid, coming.max_new_tokens) != (record.rid, record.sampling.max_new_tokens):
            text = f"it was announced as turn {turn.rid!r} of {coming.max_new_tokens} tokens at the most"
            yield self.violation(history, text, record.request)
        if not np.array_equal(tokens, turn.tokens):
            if not np.array_equal(tokens, coming.new):
                text = f"its prompt is not what it goes on from and its own: {turn.tokens.tolist()}"
                yield self.violation(history, text, record.request)
            turn.short = True
        session = self._sessions.get(coming.session)
        if session is None:
            session = self._sessions[coming.session] = _Session(0, False, closing=True)
        turn.most = len(turn.tokens) - turn.kept + record.sampling.max_new_tokens
        turn.why_not = turn.why_not or self._why_not(session, coming)
        session.live[record.request] = turn
        self._of[record.request] = coming.session

    def _why_not(self, session: _Session, coming: _Coming) -> str:
        """What stands in the turn's way once those it takes the place of have ended."""
        turn, live = coming.turn, [each for each in session.live.values() if not each.why_not]
        busy = [each.rid for each in live if coming.is_busy(session, each)]
        if busy:
            return f"turn {busy[0]!r} is live on its branch"
        if coming.scored_from >= len(turn.tokens):
            return "its prompt has no position that is to be scored"
        if session.capacity and session.size + sum(each.most for each in live) + turn.most > session.capacity:
            return "its session has no room for it"
        return ""

    def _turn(self, session: _Session, fields: dict[str, Any], history: History) -> _Turn:
        """What the turn goes on from; no tokens of its own."""
        parent, rid, replace = fields.get("parent"), str(fields["rid"]), fields.get("replace") is True
        running = {turn.rid: (request, turn) for request, turn in session.live.items() if not turn.why_not}
        why_not = ""
        if session.closing:
            why_not = "its session is not open"
        elif rid in session.turns or rid in running:
            why_not = "its session has a turn of this name"
        if session.streaming:
            if parent is not None or replace or fields.get("offset") or fields.get("drop_previous_output") is True:
                why_not = why_not or "its session only goes on"
            parent = next(iter(session.turns), None)
        if parent in running and replace and not session.streaming:
            request, other = running[parent]
            known = np.concatenate((other.tokens, history.output(history.open[request])))
            cut = _cut(known, other.num_prompt, fields)
            return _Turn(rid, other.parent, min(cut, other.kept), known[:cut], 0, other.replaces, why_not)
        if parent is not None and parent not in session.turns:
            return _Turn(rid, None, 0, _NOTHING, 0, why_not=why_not or f"turn {parent!r} has not finished")
        known = _tokens(session, parent)
        kept = _cut(known, 0 if parent is None else session.turns[parent].num_prompt, fields)
        replaces = frozenset(turn.rid for turn in session.turns.values() if replace and turn.parent == parent)
        return _Turn(rid, parent, kept, known[:kept], 0, replaces, why_not)

    def _moved(self, record: Transition, history: History) -> Iterator[Violation]:
        name = self._of[record.request]
        session = self._sessions[name]
        turn = session.live[record.request]
        if record.event == Event.ADMIT:
            if (turn.why_not or turn.short) and not session.doubtful:
                why_not = turn.why_not or "its prompt lacks what it goes on from"
                yield self.violation(history, f"it is at work as a turn, and {why_not}", record.request)
            return
        del session.live[record.request], self._of[record.request]
        if record.source == State.NEW:  # it was refused
            # Its adapter may have gone while it was on its way: that is no matter of its session.
            if (
                record.cause == Cause.INVALID
                and not turn.why_not
                and not session.doubtful
                and not adapter_of(history.submissions[record.row].namespace)
            ):
                yield self.violation(history, "it was refused as a turn, and could have been one", record.request)
            self._settle(name, session)
            return
        if record.event == Event.FINISH:
            output = history.output(record.row, record.num_output)
            turn.tokens = np.concatenate((turn.tokens, output))
            yield from self._finished(session, turn, record.request, history)
        session.num_uses += 1
        self._settle(name, session)

    def _finished(self, session: _Session, turn: _Turn, request: int, history: History) -> Iterator[Violation]:
        leaving = {rid for rid in session.turns if turn.replaces & set(session.line(rid))}
        session.turns = {rid: each for rid, each in session.turns.items() if rid not in leaving}
        if session.streaming:
            session.turns, turn.parent, turn.kept = {}, None, 0
        session.turns[turn.rid] = turn
        if session.capacity and session.size > session.capacity:
            text = f"its session holds {session.size} tokens, and may hold {session.capacity}"
            yield self.violation(history, text, request)

    def _settle(self, name: str, session: _Session) -> None:
        if session.closing and not session.live:
            del self._sessions[name]
