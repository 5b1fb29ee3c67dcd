"""`pawl chat`: a conversation in the terminal, with an engine in this process or a server anywhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pawl.commands.failures import exit_status, told
from pawl.commands.settings import SERVER_ONLY, SHOWN_ALONE, add_sampling_flags, prepared, running_engine, sampling_of
from pawl.config import ServerConfig
from pawl.flags import add_flags

if TYPE_CHECKING:
    from pawl.engine import Engine

Message: TypeAlias = dict[str, str]
Messages: TypeAlias = list[Message]

HELP = """/reset         forget the conversation
/system TEXT   set what the model is told first; forgets the conversation
/help          this
/exit          leave, as ctrl-d does; ctrl-c ends a reply"""


class Speaker(Protocol):
    """What answers: `reply` gives pieces of text; closing the iterator aborts the reply."""

    def reply(self, messages: Messages) -> Generator[str, None, None]: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the model is, sampling, and the settings of an engine of our own."""
    parser.add_argument("--url", help="talk to this server, such as http://127.0.0.1:30000, instead of an own engine")
    parser.add_argument("--url-key", metavar="TEXT", help="API key of that server")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    add_sampling_flags(parser)
    add_flags(parser, without=SERVER_ONLY, shown=SHOWN_ALONE)


def run(arguments: argparse.Namespace) -> int:
    """Talk until the input ends."""
    config = prepared(arguments, quiet=True)
    sampling = sampling_of(arguments)
    # A reply may be as long as the rest of the context, unless a limit was given.
    if not hasattr(arguments, "sampling_max_new_tokens"):
        del sampling["max_new_tokens"]
    with _speaker(arguments, config, sampling) as speaker:
        Conversation(speaker, arguments.system, show=_show).run(_lines())
    return 0


def _speaker(
    arguments: argparse.Namespace, config: ServerConfig, sampling: dict[str, Any]
) -> AbstractContextManager[Speaker]:
    if not arguments.url:
        return _embedded(config, sampling, arguments.stop)
    from pawl.commands.remote import RemoteSpeaker

    # The model's name matters to a server only where it was given: otherwise whatever it serves.
    model = getattr(arguments, "model", None)
    return closing(RemoteSpeaker(arguments.url, arguments.url_key, model, sampling, arguments.stop))


@contextmanager
def _embedded(config: ServerConfig, sampling: dict[str, Any], stop: list[str]) -> Iterator[Speaker]:
    with running_engine(config) as engine:
        yield EmbeddedSpeaker(engine, sampling, stop)


class EmbeddedSpeaker:
    """Replies from an engine in this process."""

    def __init__(self, engine: Engine, sampling: dict[str, Any], stop: list[str]) -> None:
        self._engine = engine
        self._sampling = sampling
        self._stop = stop

    def reply(self, messages: Messages) -> Generator[str, None, None]:
        """Pieces of the reply. Raises RequestFailed."""
        for delta in self._engine.stream(messages, self._sampling, stop=self._stop):
            yield delta.text


class Conversation:
    """The messages so far, and what a typed line does to them."""

    def __init__(self, speaker: Speaker, system: str | None, show: Callable[[str], None]) -> None:
        self._speaker = speaker
        self._show = show
        self.messages: Messages = []
        self.reset(system)

    def reset(self, system: str | None) -> None:
        """Begin anew. `system`: what the model is told first; None for nothing."""
        self.system = system
        self.messages = [{"role": "system", "content": system}] if system else []

    def run(self, lines: Iterator[str]) -> None:
        """Handle lines until they end or one says to leave."""
        for line in lines:
            if not self.handle(line.strip()):
                return

    def handle(self, line: str) -> bool:
        """One typed line; False to leave."""
        command, _, rest = line.partition(" ")
        match command:
            case "":
                pass
            case "/exit":
                return False
            case "/help":
                self._show(HELP + "\n")
            case "/reset":
                self.reset(self.system)
                self._show("(forgotten)\n")
            case "/system":
                self.reset(rest.strip() or None)
                self._show("(set)\n")
            case _ if command.startswith("/"):
                self._show(f"there is no command {command}\n{HELP}\n")
            case _:
                self._answer(line)
        return True

    def _answer(self, line: str) -> None:
        messages = [*self.messages, {"role": "user", "content": line}]
        pieces: list[str] = []
        try:
            with closing(self._speaker.reply(messages)) as reply:
                for piece in reply:
                    pieces.append(piece)
                    self._show(piece)
        except KeyboardInterrupt:
            self._show(" (ended)")
        except Exception as error:
            if exit_status(error) is None:
                raise
            # The turn is forgotten, so that the next one starts from what did work.
            self._show(f"\n({told(error)})\n")
            return
        self._show("\n")
        # What was said before ctrl-c was said: the model should know of it.
        self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _lines() -> Iterator[str]:
    """Lines as they are typed, with history and editing on a terminal."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401  # importing it gives input() its history and keys

    _show("/help shows what can be done here.\n")
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            _show("\n(ctrl-d leaves)\n")
        except EOFError:
            _show("\n")
            return
