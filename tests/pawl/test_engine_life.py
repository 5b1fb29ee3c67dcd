"""What an engine inside a program writes, and where: standard output belongs to the program, a home may be missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from pawl.config import ConfigError, ServerConfig
from pawl.engine import Engine
from pawl.gpu.weights.locate import ModelNotFound


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


def test_without_a_folder_to_write_an_engine_warns_and_keeps_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PAWL_CACHE", str(tmp_path / "file"))
    with capture_logs() as logs, Engine(ServerConfig(model="ghost")) as engine:
        assert engine.parts.trace_path is None
        assert len(engine.generate(["a"], {"max_new_tokens": 2})) == 1
    (advice,) = [entry["advice"] for entry in logs if entry["event"] == "no trace is written"]
    assert "--trace-dir" in advice
    assert "--no-trace" in advice


def test_without_a_folder_to_write_an_engine_that_must_keep_a_trace_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PAWL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="trace_dir"):
        Engine(ServerConfig(model="ghost", trace_required=True))


def test_a_folder_for_traces_that_was_chosen_must_be_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--no-trace"):
        Engine(ServerConfig(model="ghost", trace_dir=str(tmp_path / "file")))


def test_a_name_that_cannot_be_is_refused_before_pytorch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pawl.build.assembly", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelNotFound, match="no such file or folder"):
        Engine(ServerConfig(model="nosuchmodel"))
