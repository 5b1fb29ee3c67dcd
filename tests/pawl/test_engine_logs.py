"""What an engine inside a program says, and where: standard output belongs to the program."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from pawl.config import ServerConfig
from pawl.engine import Engine


@pytest.mark.parametrize(("level", "spoken"), [("debug", True), ("info", True), ("error", False)])
def test_logs_go_to_standard_error_and_the_level_holds(
    level: str, spoken: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    structlog.reset_defaults()
    config = ServerConfig(model="ghost", log_level=level, trace_dir=str(tmp_path))  # type: ignore[arg-type]
    with Engine(config) as engine:
        structlog.get_logger("pawl.test").info("said")
        assert len(engine.generate(["a"], {"max_new_tokens": 2})) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("said" in printed.err) is spoken
    assert spoken or printed.err == ""


def test_a_program_that_has_set_up_its_logs_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[structlog.typing.EventDict] = []

    def keep(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        kept.append(event)
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    with Engine(ServerConfig(model="ghost", trace_dir=str(tmp_path))):
        structlog.get_logger("pawl.test").info("said")
    assert {"event": "said"} in kept
    assert capsys.readouterr() == ("", "")
