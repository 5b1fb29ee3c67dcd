"""What is printed while Pawl works: lines for a person on a terminal, JSON lines for a program, on standard error.

Modules take a logger with `structlog.get_logger("pawl.engine")` and pass facts as keywords: `request`, `cause`. A line
below the level costs about a microsecond: the call is replaced by one that does nothing. Standard output is left to
results.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

if TYPE_CHECKING:
    from rich.console import Console

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
STEPS_SHOWN = 10
"""Without a terminal, long work says this many times how far it is."""

MAX_FRAMES = 30
"""Of one traceback in a log, the innermost."""
MAX_WORDS = 200
"""Characters of an exception's own words in a log."""

log = structlog.get_logger("pawl")


class _Output:
    """The stream that lines go to. While a progress bar is drawn, the bar's console writes them above it."""

    def __init__(self, stream: TextIO, *, live: bool) -> None:
        self.stream = stream
        self.live = live
        self.console: Console | None = None
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        """Print one line. Where nobody reads any more (a closed terminal, a broken pipe) the line is lost: an engine
        must not fail for want of a reader."""
        with self._lock, suppress(OSError, ValueError):
            if self.console is not None:
                from rich.text import Text

                self.console.print(Text.from_ansi(line), soft_wrap=True)
            else:
                # One write for text and line end: lines of two processes on one pipe do not mix.
                self.stream.write(line + "\n")
                self.stream.flush()


class _Logger:
    """The end of structlog's chain: takes the rendered line. Knows its own name, for the renderers."""

    def __init__(self, name: str, output: _Output) -> None:
        self.name = name
        self._output = output

    def msg(self, line: str) -> None:
        self._output.write(line)

    debug = info = warning = warn = error = critical = exception = log = msg


class _Forward(logging.Handler):
    """Hands what libraries log in the standard way to structlog, so that all lines look alike."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(record.name)
        logger.log(record.levelno, record.getMessage(), exc_info=record.exc_info)


_output = _Output(sys.stderr, live=False)


def configure_logs(
    log_format: Literal["auto", "console", "json"] = "auto", log_level: str = "info", stream: TextIO | None = None
) -> None:
    """Set up all logging of the process. `stream` is standard error where not given. Called once, by a command."""
    global _output
    target = sys.stderr if stream is None else stream
    console = log_format == "console" or (log_format == "auto" and target.isatty())
    output = _output = _Output(target, live=console and target.isatty())
    structlog.configure(
        processors=_processors(console, colors=target.isatty()),
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[log_level]),
        logger_factory=lambda *names: _Logger(str(names[0]) if names else "pawl", output),
        cache_logger_on_first_use=True,
    )
    # Other people's chatter is worth a line only when it warns.
    logging.basicConfig(handlers=[_Forward()], level=max(LEVELS[log_level], logging.WARNING), force=True)


def ensure_logs(log_format: Literal["auto", "console", "json"], log_level: str) -> None:
    """Set up logging unless a command, another engine, or the program that uses Pawl has done so."""
    if not structlog.is_configured():
        configure_logs(log_format, log_level)


def _processors(console: bool, colors: bool) -> list[Processor]:
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        _add_name,
        _add_exception,
    ]
    if console:
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        return [*shared, stamp, structlog.dev.ConsoleRenderer(colors=colors)]
    return [
        *shared,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.JSONRenderer(serializer=_json),
    ]


def _add_name(logger: WrappedLogger, _: str, event: EventDict) -> EventDict:
    event["logger"] = logger.name
    return event


def _add_exception(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What was raised, and where: files, lines and functions. No local variables and no words of an exception that may
    quote what it was raised for: a log is read by people who may not read prompts and must not read keys."""
    raised = event.pop("exc_info", None)
    error = sys.exc_info()[1] if raised is True else raised[1] if isinstance(raised, tuple) else raised
    if isinstance(error, BaseException):
        event["exception"] = "\n".join(_told(error))
    return event


def _told(error: BaseException) -> Iterator[str]:
    """An exception and those that led to it, the first first."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _told(before)
        yield "and then"
    for frame in traceback.extract_tb(error.__traceback__, limit=-MAX_FRAMES):
        yield f"  {frame.filename}:{frame.lineno} in {frame.name}"
    yield described(error)


def described(error: BaseException) -> str:
    """The class of an exception; with its words where they are ours or the system's and can hold nobody's data."""
    kind = type(error)
    if isinstance(error, OSError):
        return f"{kind.__name__}: {error.strerror or ''}"
    return f"{kind.__name__}: {str(error)[:MAX_WORDS]}" if kind.__module__.startswith("pawl.") else kind.__qualname__


def _json(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


@contextmanager
def _live(display: Callable[[Console], Any]) -> Iterator[Any]:
    """Draw `display(console)` at the foot of the terminal for the time of the block; yields it."""
    from rich.console import Console

    console, outer = Console(file=_output.stream), _output.console
    _output.console = console
    try:
        with display(console) as drawn:
            yield drawn
    finally:
        _output.console = outer


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far `total` units of work are; yields the function to call with the number of units just done.

    On a terminal a bar; otherwise a few log lines. The function may be called from any one thread.
    """
    if not _output.live:
        yield _counted(title, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _live(lambda console: Progress(*columns, console=console)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def share_done(title: str) -> Iterator[Callable[[float], None]]:
    """As `progress`, in hundredths; yields the function to call with the share that is done, 0 to 1."""
    shown = 0

    def report(share: float) -> None:
        nonlocal shown
        percent = int(share * 100)
        if percent > shown:
            advance(percent - shown)
            shown = percent

    with progress(title, 100) as advance:
        yield report


def _counted(title: str, total: int) -> Callable[[int], None]:
    """The same as log lines, `STEPS_SHOWN` of them."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if before * STEPS_SHOWN // total != done * STEPS_SHOWN // total:
            log.info(title, done=done, total=total)

    return advance
