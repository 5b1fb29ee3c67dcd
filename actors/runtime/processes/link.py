"""One connection between two processes, at one of its ends. No sockets and no threads: a wire carries its frames.

    admit ─► Outbox ─► pump ─► wire ─► ··· ─► wire ─► receive ─► LinkedMailbox

Whoever has something to send pumps: it sends all that can be sent, of whichever actor, in its own thread. Whoever comes
meanwhile leaves it to the one who pumps. When the wire takes no more, it says when it does again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import structlog

from pawl.actors.runtime.actor import Down, Lane
from pawl.actors.runtime.cell import Cell
from pawl.actors.runtime.codec import Codec, Damaged, Frame, Malformed
from pawl.actors.runtime.dead_letters import Reason
from pawl.actors.runtime.local import OUTSIDE
from pawl.actors.runtime.mailbox import DATA, Edge, Entry, Outcome
from pawl.actors.runtime.processes.ends import Heartbeat, LinkHost, Unread, Wire
from pawl.actors.runtime.processes.frames import (
    MOST_BYTES,
    MOST_FRAMES,
    Beat,
    Credit,
    Eager,
    Hello,
    Over,
    Post,
    Word,
    read,
    written,
)
from pawl.actors.runtime.processes.mailboxes import Flow, Inbound
from pawl.actors.runtime.processes.remote import Mark, RemoteCell
from pawl.actors.runtime.receiver import Phase

log = structlog.get_logger("pawl.actors")


HUNG_UP_S = 1.0
"""How long after the end of the wire a process is given up of which nobody says that it has ended."""
LAST_WORDS_S = 0.1
"""How long after the end of a process its last words may take to be read."""


class Link:
    """The end of a connection that is in this process."""

    def __init__(self, peer: str, host: LinkHost, wire: Wire, codec: Codec, heartbeat: Heartbeat) -> None:
        self.peer = peer
        self.cells: dict[str, RemoteCell] = {}
        """Actors of the other process."""
        self.met = False
        """Whether it has said Hello."""
        self.closed = False
        self.num_sent = 0
        self.num_received = 0
        """Frames of words and messages, both ways; damaged ones do not count."""
        self._host = host
        self._wire = wire
        self._codec = codec
        self._heartbeat = heartbeat
        self._pumping = threading.Lock()
        self._pump_wanted = False
        self._words: deque[Word] = deque()
        self._owed: deque[Flow] = deque()
        self._ready: deque[RemoteCell] = deque()
        self._stuck: Sequence[Frame] | None = None
        """Refused by the wire; goes first."""
        self._numbers: dict[tuple[str, str, int], int] = {}
        self._inbound: dict[tuple[str, str, int], Inbound] = {}
        self._flows: dict[str, Flow] = {}
        self._heard_at = host.clock()
        self._beat_at = self._heard_at
        self._finishing: list[threading.Event] = []
        self._ends: tuple[float, str] | None = None

    # ---- sending: any thread ----

    def ready(self, cell: RemoteCell) -> None:
        """The cell's outbox has something to be sent."""
        self._ready.append(cell)
        self.pump()

    def say(self, word: Word) -> None:
        """Tell the other process; ahead of messages."""
        self._words.append(word)
        self.pump()

    def _owe(self, flow: Flow) -> None:
        self._owed.append(flow)
        self.pump()

    def pump(self) -> None:
        """Send what can be sent."""
        self._pump_wanted = True
        while self._pump_wanted and self._pumping.acquire(blocking=False):
            try:
                self._pump_wanted = False
                self._send_all()
            finally:
                self._pumping.release()

    def _send_all(self) -> None:
        while not self.closed:
            frames = self._stuck or self._next_frames()
            if frames is None:
                return
            self._stuck = None if self._wire.send(frames) else frames
            if self._stuck is not None:
                return
            self.num_sent += 1

    def _next_frames(self) -> Sequence[Frame] | None:
        while self._owed:
            flow = self._owed.popleft()
            if (total := flow.total()) > flow.told:
                flow.told = total
                return written(Credit(flow.receiver, total))
        while True:
            if self._words:
                return written(self._words.popleft())
            if not self._ready:
                return None
            cell = self._ready[0]
            entry = cell.mailbox.next()
            if entry is None:
                if cell.mailbox.park():
                    self._ready.popleft()
            elif isinstance(entry[0], Mark):
                entry[0].passed()
            else:
                # To each in turn, so that nobody waits for what another one is sent.
                self._ready.rotate(-1)
                return self._posted(cell.name, entry)

    def _posted(self, receiver: str, entry: Entry) -> Sequence[Frame]:
        message, edge, _ = entry
        key = (edge.sender, receiver, edge.lane)
        number = self._numbers[key] = self._numbers.get(key, 0) + 1
        post = Post(edge.sender, receiver, edge.lane, number, isinstance(message, Down))
        return written(post, self._encoded(receiver, message))

    def _encoded(self, receiver: str, message: Any) -> Sequence[Frame]:
        """The frames of the message; none, which its receiver counts as a dead letter, where it cannot travel."""
        try:
            frames = self._codec.encode(message)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            log.error("a message cannot travel", to=receiver, message=type(message).__name__, why=str(error))
            return ()
        if max(map(len, frames)) > MOST_BYTES or len(frames) >= MOST_FRAMES:
            log.error("a message is too large to travel", to=receiver, message=type(message).__name__)
            return ()
        return frames

    def num_waiting(self) -> int:
        """What was said or posted here and cannot be sent yet; DATA without credit does not count."""
        stuck = len(self._words) + len(self._owed) + (self._stuck is not None)
        return stuck + len(self._ready)

    def finish(self, name: str, failed: bool) -> None:
        """An actor of this process has ended: say so once all that it sent to the other process was taken."""
        said = threading.Event()
        self._finishing.append(said)
        waiting = [1]
        lock = threading.Lock()

        def passed() -> None:
            with lock:
                waiting[0] -= 1
                if waiting[0]:
                    return
            self.say(Over(name, failed))
            said.set()

        for cell in list(self.cells.values()):
            with lock:
                waiting[0] += 1
            if not cell.mark(passed):
                passed()
        passed()

    def finished(self, timeout_s: float) -> None:
        """Wait until the other process was told of all that has ended here, at most so long."""
        until = time.monotonic() + timeout_s
        for said in self._finishing:
            said.wait(max(0.0, until - time.monotonic()))

    # ---- receiving: the thread of the wire ----

    def receive(self, frames: Sequence[Frame]) -> None:
        """Frames have come, from wherever. Raises nothing."""
        if self.closed:
            return
        try:
            word, message = read(frames)
            if not self.met and not isinstance(word, Hello):
                raise Malformed(f"{type(word).__name__} before Hello")
            self._heard_at = self._host.clock()
            self._take(word, message)
            self.num_received += 1
        except Malformed as error:
            self._host.dead_letters.add(self.peer, self.peer, Unread(str(error)), Reason.MALFORMED)

    def _take(self, word: Word, message: Sequence[Frame]) -> None:
        match word:
            case Post():
                self._deliver(word, message)
            case Credit():
                self._credited(word)
            case Eager():
                flow = self._flow(word.receiver)
                flow.batch = 1
                self._owe(flow)
            case Beat():
                pass
            case _:
                self._host.told(self, word)

    def _credited(self, credit: Credit) -> None:
        cell = self.cells.get(credit.receiver)
        if cell is None:
            raise Malformed("credit for an actor that there is not")
        if cell.phase is Phase.ENDED:
            return
        try:
            cell.mailbox.credit(credit.taken)
        except ValueError as error:
            raise Malformed(str(error)) from error

    def _deliver(self, post: Post, message: Sequence[Frame]) -> None:
        found = self._host.local(post.receiver)
        if found is None:
            self._host.dead_letters.add(self.peer, post.sender, Unread(post.receiver), Reason.UNKNOWN_RECEIVER)
            return
        edge = self._edge(post)
        if post.number <= edge.arrived:
            raise Malformed("it has come before")
        if post.number > edge.arrived + 1:
            missing = post.number - edge.arrived - 1
            self._host.lost(self, f"a gap of {missing} from {post.sender} to {post.receiver}")
            return
        cell, codec = found
        try:
            content = codec.decode(message)
        except Malformed as error:
            if isinstance(error, Damaged) and message:
                raise
            # It is whole, and yet nothing that this actor accepts.
            self._host.dead_letters.add(post.receiver, post.sender, Unread(str(error)), Reason.UNKNOWN_MESSAGE)
            if post.lane == DATA:
                edge.flow.drop()
        else:
            self._put(cell, content, edge, fenced=post.fenced)
        edge.arrived = post.number

    def _put(self, cell: Cell, content: Any, edge: Inbound, *, fenced: bool) -> None:
        if fenced:
            self._host.heard_down(cell.name, edge.sender)
            if cell.mailbox.put_fenced(content, Edge(edge.sender, Lane.SYSTEM, None)):
                return
        elif cell.mailbox.put(content, edge) is not Outcome.CLOSED:
            return
        self._host.dead_letters.add(cell.name, edge.sender, content, Reason.RECEIVER_GONE)
        if edge.lane == DATA:
            edge.flow.drop()

    def _edge(self, post: Post) -> Inbound:
        key = (post.sender, post.receiver, post.lane)
        edge = self._inbound.get(key)
        if edge is None:
            if post.sender not in self.cells and post.sender != OUTSIDE:
                raise Malformed("a message of an actor that there is not")
            edge = self._inbound[key] = Inbound(post.sender, Lane(post.lane), self._flow(post.receiver))
        return edge

    def _flow(self, receiver: str) -> Flow:
        flow = self._flows.get(receiver)
        if flow is None:
            found = self._host.local(receiver)
            if found is None:
                raise Malformed("about an actor that there is not")
            flow = self._flows[receiver] = Flow(receiver, found[0].mailbox.capacity, self._owe)
        return flow

    # ---- time: the thread of the wire ----

    def tick(self) -> float:
        """Say that this process is alive, and see whether the other one is. When to come again, monotonic seconds."""
        now = self._host.clock()
        if now >= self._beat_at:
            self._beat_at = now + self._heartbeat.every_s
            if self._stuck is None:
                self.say(Beat())
        if self._ends is not None and now >= self._ends[0]:
            self._host.lost(self, self._ends[1])
        elif self.met and self.silent_s >= self._heartbeat.patience_s:
            self._host.lost(self, f"silent for {self.silent_s:.1f} s")
        due = [self._beat_at, *([self._ends[0]] if self._ends else [])]
        return min([*due, self._heard_at + self._heartbeat.patience_s] if self.met else due)

    @property
    def silent_s(self) -> float:
        """How long nothing has been heard of the other process."""
        return self._host.clock() - self._heard_at

    def ends(self, reason: str) -> None:
        """The other process is known to have ended: what it has said still arrives, then it is lost."""
        at = self._host.clock() + LAST_WORDS_S
        self._ends = (min(at, self._ends[0]) if self._ends else at, reason)
        self._wire.wake()

    def hung_up(self, reason: str) -> None:
        """The wire has ended. Whoever knows why the process did may still say it better."""
        self._ends = self._ends or (self._host.clock() + HUNG_UP_S, reason)
        self._wire.wake()

    def close(self, linger_s: float, last: Word | None = None) -> None:
        """Neither send nor receive any more, after a `last` word."""
        if last is not None:
            with self._pumping:
                self._words.append(last)
                self._send_all()
        self.closed = True
        self._wire.close(linger_s)
