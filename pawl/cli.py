"""`pawl COMMAND`: finds the command and leaves the rest to it. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn, Protocol, cast

from pawl import __version__

EXIT_USAGE = 2
"""The command line or the configuration cannot be."""
EXIT_INTERRUPTED = 130
"""Ended by ctrl-c, as shells count it."""


class CommandModule(Protocol):
    """What a module in `pawl.commands` has."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the work; returns the exit status."""


class Command(NamedTuple):
    """One command, in `pawl.commands.<module>`."""

    module: str
    summary: str
    judges: bool = False
    """Its status 1 is a verdict, which a failure of the command itself must not look like."""


COMMANDS = {
    "serve": Command("serve", "serve a model over HTTP: OpenAI's API and the native one"),
    "generate": Command("generate", "answer prompts without a server"),
    "chat": Command("chat", "talk with a model in the terminal"),
    "bench": Command("bench", "measure throughput (offline) and latency (online)"),
    "audit": Command("audit", "check a recorded trace against the properties of a correct engine", judges=True),
    "explore": Command(
        "explore", "run the engine in a simulator under many schedules and check every step", judges=True
    ),
    "replay": Command("replay", "run a recorded run, or a schedule that was found, again", judges=True),
    "trace": Command("trace", "a trace in the formats of other tools, and back"),
    "ctl": Command("ctl", "send a control message to a running server"),
    "top": Command("top", "watch a running server in the terminal, and steer it"),
    "node": Command("node", "have this host compute for a server on another one"),
    "keys": Command("keys", "make the keys with which processes on several machines know each other"),
    "doctor": Command("doctor", "look at this machine and say what works and what does not"),
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line that a terminal can show, however long the words are; so do its subparsers."""

    def error(self, message: str) -> NoReturn:
        from pawl.commands.failures import UsageError, told

        super().error(told(UsageError(message)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Wrong usage prints help and raises SystemExit, as argparse does."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = words[0] if words and words[0] in COMMANDS else None
    try:
        parsed = _parser(chosen).parse_args(words)
        if chosen is None:
            # Nothing but a command was missing: argparse has answered everything else itself.
            _parser(None).print_help(sys.stderr)
            return EXIT_USAGE
        return _run(chosen, parsed)
    except KeyboardInterrupt:  # also while what the command needs is imported
        return EXIT_INTERRUPTED


def _run(chosen: str, parsed: argparse.Namespace) -> int:
    from pawl.logs import configure_logs

    configure_logs()
    try:
        status = _module(chosen).run(parsed)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader of our output (head, less) has gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _explain(error, COMMANDS[chosen].judges)


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """A parser that knows all commands by name, and the arguments of the chosen one."""
    parser = Parser(prog="pawl", description="An LLM serving engine you can check.")
    parser.add_argument("--version", action="version", version=f"pawl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", dest="command")
    for name, command in COMMANDS.items():
        own = commands.add_parser(
            name, help=command.summary, description=command.summary[0].upper() + command.summary[1:]
        )
        if name == chosen:
            _module(name).add_arguments(own)
    return parser


def _module(name: str) -> CommandModule:
    return cast(CommandModule, importlib.import_module(f"pawl.commands.{COMMANDS[name].module}"))


def _explain(error: Exception, judges: bool) -> int:
    """One line for a failure that the user can do something about; anything else is a defect and keeps its trace."""
    from pawl.commands.failures import EXIT_FAILED, EXIT_NOTHING_JUDGED, exit_status, told

    status = exit_status(error)
    if status is None:
        raise error
    print(f"pawl: {told(error)}", file=sys.stderr)
    return EXIT_NOTHING_JUDGED if judges and status == EXIT_FAILED else status


if __name__ == "__main__":
    sys.exit(main())
