"""Kinds of grammars in terms of others, for backends that have no word for them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_WHITESPACE = 20
"""Characters between two tokens of JSON: enough to indent, and no model goes on with it for ever."""
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quoted(text: str) -> str:
    """A literal of GBNF; control characters by their numbers."""
    return '"' + "".join(_ESCAPES.get(c, c if c >= " " else f"\\x{ord(c):02x}") for c in text) + '"'


def choice_to_ebnf(choices: Sequence[str]) -> str:
    """GBNF of one of these strings."""
    return "root ::= " + " | ".join(map(quoted, choices))


def choice_to_lark(choices: Sequence[str]) -> str:
    """The same in Lark, whose literals are those of JSON."""
    return "start: " + " | ".join(map(json.dumps, choices))


# ---- GBNF in Lark ----

_PIECES = re.compile(
    r"""
    (?P<space>\s+ | \#[^\n]*)
    | (?P<define>(?P<name>[A-Za-z_][\w-]*)\s*::=)
    | (?P<rule>[A-Za-z_][\w-]*)
    | (?P<text>"(?:[^"\\]|\\.)*")
    | (?P<class>\[(?:[^\]\\]|\\.)*\])
    | (?P<counts>\{\s*\d+\s*(?:,\s*\d*\s*)?\})
    | (?P<mark>[()|*+?.])
    """,
    re.VERBOSE,
)


def ebnf_to_lark(text: str) -> str:
    """Lark of rules in GBNF. Raises ValueError for what is not understood."""
    out: list[str] = []
    at = 0
    while at < len(text):
        piece = _PIECES.match(text, at)
        if piece is None:
            raise ValueError(f"at character {at}: {text[at : at + 20]!r} is not understood")
        at = piece.end()
        out.append(_in_lark(piece))
    return "".join(out).strip()


def _in_lark(piece: re.Match[str]) -> str:
    match piece.lastgroup:
        case "name" | "define":
            return f"\n{_rule(piece['name'])}:"
        case "rule":
            return f" {_rule(piece['rule'])}"
        case "text":
            return " " + json.dumps(_plain(piece["text"]))
        case "class":
            return f" /{piece['class'].replace('/', chr(92) + '/')}/"
        case "counts":
            return piece["counts"].replace(" ", "")
        case "mark":
            return " /./" if piece["mark"] == "." else f" {piece['mark']}" if piece["mark"] in "(|" else piece["mark"]
    return " "


def _rule(name: str) -> str:
    """A name that is a rule's in Lark: `root` is its start."""
    return "start" if name == "root" else "r_" + name.lower().replace("-", "_") + ("" if name.islower() else "_u")


def _plain(literal: str) -> str:
    """What a literal of GBNF stands for."""
    simple = {"n": "\n", "r": "\r", "t": "\t"}

    def character(found: re.Match[str]) -> str:
        code = found[1]
        return chr(int(code[1:], 16)) if code[0] in "xuU" and len(code) > 1 else simple.get(code, code)

    return re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", character, literal[1:-1])


# ---- structural tags in Lark ----


def tag_to_lark(tag: Mapping[str, Any]) -> str:
    """Lark of a structural tag: free text, in which each trigger begins one of its tags. Raises ValueError for other
    forms."""
    form = tag.get("format")
    if not isinstance(form, Mapping) or form.get("type") != "triggered_tags":
        raise ValueError("only triggered_tags are supported by the grammar backend llguidance")
    unknown = sorted(form.keys() - {"type", "triggers", "tags"})
    if unknown:
        raise ValueError(f"{unknown[0]} is not supported by the grammar backend llguidance")
    rules, branches = [], []
    for number, one in enumerate(form["tags"]):
        trigger = next((each for each in form["triggers"] if one["begin"].startswith(each)), None)
        content = one.get("content") or {}
        if trigger is None:
            raise ValueError(f"no trigger begins the tag {one['begin']!r:.60}")
        if content.get("type") != "json_schema":
            raise ValueError("only json_schema is supported in tags by the grammar backend llguidance")
        branches.append(f"tag_{number}")
        rest = [json.dumps(part) for part in (one["begin"][len(trigger) :],) if part]
        body = [*rest, f"%json {json.dumps(content['json_schema'])}", *([json.dumps(one["end"])] if one["end"] else [])]
        rules.append(f"tag_{number}: text_{number} {' '.join(body)}")
        rules.append(f"text_{number}[lazy]: /(.|\\n)*/ {json.dumps(trigger)}")
    return "\n".join([f"start: ({' | '.join(branches)})* text", "text: /(.|\\n)*/", *rules])
