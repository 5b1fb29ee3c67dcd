"""The generated page says what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pawl.lifecycle.documents import DOCUMENT, attribute_docstrings, diagram, display_name, document, main
from pawl.lifecycle.machine import TABLE
from pawl.lifecycle.states import Event, State


def test_the_page_in_the_repository_is_what_the_code_says() -> None:
    assert main(["--check"]) == 0


def test_a_stale_page_fails_the_check_and_writing_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lifecycle.md"
    assert main(["--check"], path) == 1
    path.write_text(DOCUMENT.read_text() + "x")
    assert main(["--check"], path) == 1
    assert "python -m pawl.lifecycle.documents" in capsys.readouterr().err
    assert main([], path) == 0
    assert main(["--check"], path) == 0


def test_every_state_is_explained() -> None:
    assert set(attribute_docstrings(State)) == {state.name for state in State}


def test_every_edge_is_a_line_of_the_page() -> None:
    lines = document().splitlines()
    for edge in TABLE:
        start = f"| {display_name(edge.source)} | `{edge.event.name.lower()}` |"
        assert any(line.startswith(start) and edge.why in line for line in lines), edge


def test_the_diagram_has_every_move_but_aborts_and_dashes_those_that_are_reserved() -> None:
    drawn = "\n".join(diagram())
    for edge in TABLE:
        start, end = f"    {edge.source.name} {'-.->' if edge.reserved else '-->'}|", f"| {edge.target.name}"
        if edge.event not in (Event.ABORT, Event.STALE_TOKEN):
            (line,) = [line for line in drawn.splitlines() if line.startswith(start) and line.endswith(end)]
            assert edge.event.name.lower() in line.removeprefix(start).removesuffix(end).split(" / ")
