"""What a link stands between: a wire that carries its frames, and the system whose actors send and receive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pawl.actors.runtime.cell import Cell
from pawl.actors.runtime.codec import Codec, Frame
from pawl.actors.runtime.dead_letters import DeadLetters
from pawl.actors.runtime.processes.frames import Bye, Hello, Over, Spawned, Stop, Watch

if TYPE_CHECKING:
    from pawl.actors.runtime.processes.link import Link


class Heartbeat(NamedTuple):
    """How it is noticed that a process is silent."""

    every_s: float = 1.0
    patience_s: float = 10.0
    """Longer than any call that keeps Python's lock."""


class Wire(Protocol):
    """Carries frames to one other process and back, in order."""

    def carry(self, link: Link) -> None:
        """From now on call `receive`, `tick`, and, when `send` has refused something, `pump`."""

    def send(self, frames: Sequence[Frame]) -> bool:
        """Whether they are on their way. Never called by two threads at once."""

    def wake(self) -> None:
        """Call `tick` now: it has another time at which to come again."""

    def close(self, linger_s: float) -> None:
        """Carry nothing any more, after what was sent, which may take so long."""


class LinkHost(Protocol):
    """What a link needs from its system."""

    dead_letters: DeadLetters
    clock: Callable[[], float]

    def local(self, name: str) -> tuple[Cell, Codec] | None:
        """The cell of an actor of this process, and what decodes its messages."""

    def told(self, link: Link, word: Hello | Spawned | Watch | Stop | Over | Bye) -> None:
        """The other process has said so."""

    def heard_down(self, watcher: str, watched: str) -> None:
        """The watcher was told by the other process that an actor of it has failed."""

    def lost(self, link: Link, reason: str) -> None:
        """The other process is not to be heard any more."""


class Unread(NamedTuple):
    """Stands in a dead letter for bytes that are no message."""

    why: str
