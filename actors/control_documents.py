"""Prints the control messages as documentation: `python -m pawl.actors.control_documents` writes docs/control.md.

With `--check` nothing is written, and the exit code is 1 when the file is not what the rows say.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pawl.actors.control import ROWS
from pawl.actors.control_row import Needs, Row, parameters
from pawl.lifecycle.documents import Page, table

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "control.md"

_INTRODUCTION = f"""\
# Control messages

<!-- Written by `python -m pawl.actors.control_documents` from actors/control/. Do not edit. -->

Each message is one row in a module of [actors/control/](../actors/control). Its fields come in the query, as a JSON
body, or as flags of `pawl ctl NAME`. A message that changes what the loop decides is an order
([loops/orders/](../loops/orders)): it is recorded when it reaches the loop, and a replay gives it again.

What a message needs of the loop:

* *{Needs.NOTHING}*: it only looks;
* *{Needs.BETWEEN_STEPS}*: no step is being planned while it is done; steps may be in flight;
* *{Needs.ROUTER}*: it is done by the router in front of several replicas, and changes nothing that these decide;
* *{Needs.WORKER}*: it is done by the worker, between two steps, and changes nothing that the loop decides;
* *{Needs.REST}*: nothing waits, runs or is in flight, or the engine is paused and whoever waits owns no memory; its
  `timeout` says how long to wait for that.
"""
_HEADER = ("message", "routes", "who", "needs", "replayed", "fields", "")


def document() -> str:
    """The text of docs/control.md."""
    return "\n".join((_INTRODUCTION, *table(_HEADER, map(_cells, ROWS)))) + "\n"


def _cells(row: Row) -> Sequence[str]:
    who = f"{row.who}; admin for some fields" if row.admin_when is not None else str(row.who)
    return (
        f"`{row.name}`",
        f"{' '.join(row.methods)} " + ", ".join(f"`{path}`" for path in row.routes) if row.routes else "from within",
        who,
        str(row.needs),
        "yes" if row.replayed else "no",
        "; ".join(_fields(row)) or "none",
        row.help,
    )


def _fields(row: Row) -> Iterator[str]:
    for parameter in parameters(row.taken):
        yield f"`{parameter.name}`" + (f": {parameter.help.replace(';', ',')}" if parameter.help else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the document, or check it. The exit code."""
    return Page(DOCUMENT, document, "pawl.actors.control_documents").keep(arguments)


if __name__ == "__main__":
    sys.exit(main())
