"""Prints the lifecycle as documentation: `python -m pawl.lifecycle.documents` writes docs/lifecycle.md from the code.

With `--check` nothing is written, and the exit code is 1 when the file is not what the code says.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pawl.lifecycle.machine import GUARDS, TABLE, Edge
from pawl.lifecycle.machines import MACHINES
from pawl.lifecycle.states import ABORT_CAUSES, FINISH_CAUSES, RETRACT_CAUSES, Cause, Event, State

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "lifecycle.md"

_INTRODUCTION = """\
# The lifecycle of a request

<!-- Written by `python -m pawl.lifecycle.documents` from lifecycle/states.py and lifecycle/machine.py. Do not edit. -->

A request is a state machine, and one table says all that it may do. The table guards the running server, is the model
of the property tests, and judges recorded traces. A pair of state and event that is not in it raises
`IllegalTransition`; so does an edge with a cause that the edge does not admit."""


def attribute_docstrings(kind: type) -> dict[str, str]:
    """The string after each assignment in the body of a class, by the name assigned."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, after in zip(definition.body, definition.body[1:], strict=False):
        match statement, after:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def document() -> str:
    """The text of docs/lifecycle.md."""
    parts = (_INTRODUCTION, *_diagram(), *_states(), *_transitions(), *_guards(), *_causes(), *_machines())
    return "\n".join(parts) + "\n"


def display_name(state: State) -> str:
    """`QUEUED.compiling` for a substate, `QUEUED` for the state itself."""
    phase, _, substate = state.name.partition("_")
    return f"{phase}.{substate.lower()}" if substate else phase


def diagram() -> Iterator[str]:
    """Mermaid source; reserved edges are dashed. Edges that every state has (abort) or that change nothing and are late
    (stale) are left out."""
    yield "flowchart TD"
    for state in State:
        opening, closing = ("([", "])") if state.terminal or state == State.NEW else ("(", ")")
        yield f'    {state.name}{opening}"{display_name(state)}"{closing}'
    edges: dict[tuple[State, State, bool], list[str]] = {}
    for edge in TABLE:
        names = edges.setdefault((edge.source, edge.target, edge.reserved), [])
        if edge.event not in (Event.ABORT, Event.STALE_TOKEN) and edge.event.name.lower() not in names:
            names.append(edge.event.name.lower())
    for (source, target, reserved), names in edges.items():
        if names:
            yield f"    {source.name} {'-.->' if reserved else '-->'}|{' / '.join(names)}| {target.name}"


def _diagram() -> Iterator[str]:
    yield from ("", "```mermaid", *diagram(), "```", "")
    yield "Dashed edges are reserved: the table has them, and nothing fires them yet. Every state that is not terminal"
    yield "can also be left by `abort`. A token that comes too late (`stale_token`) changes nothing; its edges are left"
    yield "out of the diagram."


def _states() -> Iterator[str]:
    about = attribute_docstrings(State)
    yield from ("", "## States", "")
    yield from table(
        ("state", "public state", "terminal", "what it means"),
        ((display_name(s), s.phase.value, "yes" if s.terminal else "", about[s.name]) for s in State),
    )


def _transitions() -> Iterator[str]:
    yield from ("", "## Transitions", "")
    header = ("state", "event", "to", "causes", "guard", "reserved", "why")
    yield from table(header, (_row(edge) for edge in TABLE))
    yield ""
    yield from (f"`{name.lower()}`: {text}" for name, text in attribute_docstrings(Event).items())


def _row(edge: Edge) -> tuple[str, ...]:
    target = "stays" if edge.source == edge.target else display_name(edge.target)
    causes = _named(edge.causes)
    event, reserved = f"`{edge.event.name.lower()}`", "reserved" if edge.reserved else ""
    return display_name(edge.source), event, target, causes, edge.guard or "", reserved, edge.why


def _named(causes: frozenset[Cause]) -> str:
    if causes == ABORT_CAUSES:
        return "any abort cause"
    return ", ".join(f"`{cause}`" for cause in Cause if cause in causes and cause != Cause.NONE)


def _guards() -> Iterator[str]:
    yield from ("", "## Guards", "")
    yield from table(("guard", "holds when"), ((f"`{name}`", text) for name, text in GUARDS.items()))


def _causes() -> Iterator[str]:
    yield from ("", "## Causes", "", "The cause of an edge reaches the client, the trace and the metrics.", "")
    kinds = {"finish": FINISH_CAUSES, "abort": ABORT_CAUSES, "retract": RETRACT_CAUSES}
    rows = ((kind, ", ".join(f"`{cause}`" for cause in Cause if cause in causes)) for kind, causes in kinds.items())
    yield from table(("of", "causes"), rows)


def _machines() -> Iterator[str]:
    yield from ("", "## What control messages move", "")
    yield "Each is a table of its own in [lifecycle/machines/](../lifecycle/machines), with the same uses. A pair that"
    yield "is not in it is refused, and changes nothing."
    for machine in MACHINES:
        yield from ("", f"### {machine.name}", "", machine.about, "", "```mermaid", "flowchart LR")
        yield from (f"    {source} -->|{event}| {target}" for source, event, target, _ in machine.moves)
        yield from ("```", "")
        yield from table(("state", "event", "to", "why"), ((s, f"`{e}`", t, why) for s, e, t, why in machine.moves))
        yield ""
        about = attribute_docstrings(type(machine.start))
        yield from (f"* `{name.lower()}`: {text}" for name, text in about.items())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield "| " + " | ".join(header) + " |"
    yield "| " + " | ".join("---" for _ in header) + " |"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


class Page(NamedTuple):
    """A page of documentation that is made from code."""

    path: Path
    text: Callable[[], str]
    module: str
    """What makes it when it is run."""

    def keep(self, arguments: Sequence[str] | None) -> int:
        """Write the page, or with `--check` only compare. The exit code."""
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=f"Writes {self.path.name}.")
        parser.add_argument("--check", action="store_true", help="only compare; exit 1 when the document is stale")
        if not parser.parse_args(arguments).check:
            self.path.write_text(self.text())
            return 0
        if self.path.exists() and self.path.read_text() == self.text():
            return 0
        print(f"{self.path} is not what the code says: run python -m {self.module}", file=sys.stderr)
        return 1


def main(arguments: Sequence[str] | None = None, path: Path = DOCUMENT) -> int:
    """Write the document, or check it. The exit code."""
    return Page(path, document, "pawl.lifecycle.documents").keep(arguments)


if __name__ == "__main__":
    sys.exit(main())
