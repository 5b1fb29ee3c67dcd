"""`pawl ctl NAME`: send a control message to a running server. Names, flags and help are those of `actors/control/`.

0: it was done; 1: it was refused, or not all of it was done, or no server answers; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import sys
import urllib.parse
from typing import Any

import msgspec

from pawl.actors.control import ROWS
from pawl.actors.control_row import Parameter, Row, Who, parameters
from pawl.actors.text.invalid import quoted
from pawl.commands.failures import UsageError, printable
from pawl.commands.remote import DEFAULT_URL, KEYS, Server, decoded, key_from

PATIENCE_S = 30.0
"""How long the server may take beyond the time within which it answers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A command for each message that has a route."""
    commands = parser.add_subparsers(required=True, metavar="NAME", title="messages")
    for row in ROWS:
        if not row.routes or not row.command:
            continue
        text = row.help + (" Needs the admin key." if row.who is Who.ADMIN else "")
        own = commands.add_parser(row.name, help=text, description=text)
        own.add_argument("--url", default=DEFAULT_URL, help="of the server (default: %(default)s)")
        own.add_argument("--api-key", metavar="KEY", help=f"(default: what {' or '.join(KEYS)} holds)")
        for parameter in parameters(row.taken):
            _add_flag(own, parameter)
        own.set_defaults(row=row)
    parser.epilog = "exit status: 0 it was done, 1 it was not (all of it) or no server answers, 2 wrong usage"


def run(arguments: argparse.Namespace) -> int:
    """Send the message, print the server's reply."""
    row: Row = arguments.row
    values = {parameter.name: getattr(arguments, parameter.attribute) for parameter in parameters(row.taken)}
    given = {name: value for name, value in values.items() if value is not None}
    try:
        body = msgspec.convert(given, row.taken, strict=False)
        fields = {name: value for name, value in msgspec.to_builtins(body).items() if name in given}
        data = msgspec.json.encode(fields)
    except msgspec.ValidationError as error:
        raise UsageError(f"{row.name}: {error}") from None
    except UnicodeEncodeError:
        raise UsageError(f"{row.name}: a value is no text in UTF-8") from None
    server, path, method = Server(arguments.url, key_from(arguments.api_key)), row.routes[0], row.methods[0]
    patience_s = PATIENCE_S + row.wait_s(body)
    if method == "GET":
        query = urllib.parse.urlencode({name: _text(value) for name, value in fields.items()})
        reply = server.request(method, path + (f"?{query}" if query else ""), None, patience_s)
    else:
        reply = server.request(method, path, data, patience_s)
    told = decoded(reply)
    sys.stdout.write(printable(msgspec.json.format(reply, indent=2).decode()) + "\n")
    return int(isinstance(told, dict) and told.get("success") is False)


def _add_flag(parser: argparse.ArgumentParser, parameter: Parameter) -> None:
    """Its values are checked when all of them are known."""
    name = "--" + parameter.name.replace("_", "-")
    options: dict[str, Any] = {"dest": parameter.attribute, "default": None, "help": parameter.help}
    if bool in parameter.kinds:
        parser.add_argument(name, action=argparse.BooleanOptionalAction, **options)
    elif dict in parameter.kinds:
        parser.add_argument(name, nargs="+", action=Pairs, metavar="NAME=VALUE", required=parameter.required, **options)
    elif parameter.kinds & {list, tuple}:
        parser.add_argument(name, nargs="+", type=_item, metavar="NAME", required=parameter.required, **options)
    else:
        parser.add_argument(name, metavar="VALUE", required=parameter.required, **options)


class Pairs(argparse.Action):
    """Words NAME=VALUE as a dictionary; what is JSON is read as that."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        pairs: dict[str, Any] = {}
        for word in values:
            name, equals, text = word.partition("=")
            if not equals:
                parser.error(f"{quoted(word)} is not NAME=VALUE")
            try:
                pairs[name] = _read(text)
            except argparse.ArgumentTypeError as error:
                parser.error(str(error))
        setattr(namespace, self.dest, pairs)


def _item(word: str) -> Any:
    """One of a list: a word, or a list of its own, such as [576,1536]."""
    return _read(word) if word.startswith("[") else word


def _read(text: str) -> Any:
    """What is JSON as that, all else as it is."""
    try:
        return msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeError):
        return text
    except RecursionError:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is nested too deeply") from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
