"""Prints the control messages as documentation: `python -m pawl.actors.control_documents` writes docs/control.md.

With `--check` nothing is written, and the exit code is 1 when the file is not what the rows say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from pawl.actors.control import ROWS
from pawl.actors.control_row import Needs, Row, parameters

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
* *{Needs.REST}*: nothing waits, runs or is in flight; its `timeout` says how long to wait for that.

| message | routes | who | needs | replayed | fields | |
| --- | --- | --- | --- | --- | --- | --- |"""


def document() -> str:
    """The text of docs/control.md."""
    return "\n".join([_INTRODUCTION, *(_line(row) for row in ROWS)]) + "\n"


def _line(row: Row) -> str:
    who = f"{row.who}; admin for some fields" if row.admin_when is not None else str(row.who)
    cells = (
        f"`{row.name}`",
        f"{' '.join(row.methods)} " + ", ".join(f"`{path}`" for path in row.routes) if row.routes else "from within",
        who,
        str(row.needs),
        "yes" if row.replayed else "no",
        "; ".join(_fields(row)) or "none",
        row.help,
    )
    return f"| {' | '.join(cells)} |"


def _fields(row: Row) -> Iterator[str]:
    for parameter in parameters(row.taken):
        yield f"`{parameter.name}`" + (f": {parameter.help.replace(';', ',')}" if parameter.help else "")


def main() -> int:
    """Write or check the document."""
    parser = argparse.ArgumentParser(description="write docs/control.md from actors/control/")
    parser.add_argument("--check", action="store_true", help="only say whether the file is what the rows say")
    if not parser.parse_args().check:
        DOCUMENT.write_text(document())
        return 0
    if DOCUMENT.is_file() and DOCUMENT.read_text() == document():
        return 0
    print(f"{DOCUMENT} is not what the code says; write it again: make docs-generated", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
