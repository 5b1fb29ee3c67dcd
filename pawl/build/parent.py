"""Who has started a process of a replica: what it gave it to begin with, and what it is told before there is a link."""

from __future__ import annotations

from typing import IO, NamedTuple

import msgspec
from structlog.typing import FilteringBoundLogger

from pawl.build.ready import Refused, Setup, Told
from pawl.commands.failures import exit_status
from pawl.config import ServerConfig
from pawl.gpu.children import ended_by_parent
from pawl.gpu.frames import read_frame, streams_of_child, write_frame
from pawl.logs import configure_logs


class Parent(NamedTuple):
    """What it gave, and where it is heard and told."""

    setup: Setup
    config: ServerConfig
    source: IO[bytes]
    """Its end is the end of the parent."""
    target: IO[bytes]

    def tell(self, told: Told) -> None:
        """Say this. Raises OSError."""
        write_frame(self.target, msgspec.msgpack.encode(told))

    def refuse(self, error: Exception, log: FilteringBoundLogger, what: str) -> None:
        """Say that nothing comes of the start, while `error` is handled: with a traceback under `what`, where it is of
        a kind that nobody expects. Raises OSError."""
        if isinstance(error, BrokenPipeError):  # the parent has ended, and nobody is left to hear it
            return
        status = exit_status(error)
        if status is None:
            log.exception(what)
        self.tell(Refused(str(error) or type(error).__name__, usage=status == 2))


def parent() -> Parent | None:
    """The parent of this process, once it has said what to begin with; logs are as it wants them. None where it has
    ended before."""
    ended_by_parent()
    source, target = streams_of_child()
    frame = read_frame(source)
    if frame is None:
        return None
    setup = msgspec.msgpack.decode(frame, type=Setup)
    config = msgspec.convert(setup.config, ServerConfig)
    configure_logs(config.log_format, config.log_level)
    return Parent(setup, config, source, target)
