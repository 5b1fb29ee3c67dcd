"""What `pawl` does with words: the right command, the right exit status, one line for what the user can mend."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from pawl import __version__, cli
from pawl.cli import COMMANDS, Command, main
from pawl.commands.failures import FAILURES, USAGE, CommandFailed, UsageError
from pawl.commands.serve import curl_line
from pawl.lifecycle.records import Closed, Gap
from tests.lifecycle.story import sound_run, without, write
from tests.lifecycle.test_trace import VERSION_1
from tests.loops.test_replay import record_run

HEAVY = {"torch", "numpy", "msgspec", "structlog", "starlette", "uvicorn", "rich", "yaml"}


def in_new_process(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


# ---- words ----


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    done = in_new_process(
        "import sys\nfrom pawl.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: print(end.code, sorted(sys.modules), file=sys.stderr)"
    )
    assert done.stderr.startswith("0 ")
    assert all(f"\n    {name} " in done.stdout for name in COMMANDS)
    assert not [name for name in HEAVY if f"'{name}'" in done.stderr]


def test_help_of_every_command_needs_no_torch() -> None:
    done = in_new_process(
        "import sys\nsys.modules['torch'] = None\nfrom pawl.cli import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    try: main([name, '-h'])\n"
        "    except SystemExit as end: print(end.code, file=sys.stderr)"
    )
    assert done.stderr.split() == ["0"] * len(COMMANDS), done.stderr
    assert re.findall("^usage: pawl ([a-z-]+)", done.stdout, re.MULTILINE) == list(COMMANDS)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"pawl {__version__}\n"


def test_no_command_prints_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "serve" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["sreve"], ["serve", "--prot", "1"], ["serve", "--port", "x"], ["bench"]])
def test_words_that_cannot_be_end_with_status_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2


@pytest.mark.parametrize("words", [["serve", "--port", "70000"], ["generate", "--kv-tokens", "0", "x"]])
def test_a_setting_that_cannot_be_is_told_in_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"pawl: {words[1].removeprefix('--').replace('-', '_')}")
    assert said.count("\n") == 1


# ---- failures ----


def failing_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `pawl fail` raise `error`."""

    def run(arguments: object) -> int:
        raise error

    module = types.ModuleType("pawl.commands.fail")
    module.add_arguments = lambda parser: None  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "fail", Command("fail", "fails"))


@pytest.mark.parametrize(
    ("error", "status"),
    [(UsageError("both"), 2), (CommandFailed("gone"), 1), (PermissionError(13, "denied", "there"), 1)],
)
def test_what_the_user_can_mend_is_one_line_and_a_status(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_with(error, monkeypatch)
    assert main(["fail"]) == status
    assert capsys.readouterr().err == f"pawl: {error}\n"


@pytest.mark.parametrize("command", ["audit", "replay", "explore"])
def test_a_failure_looks_like_no_verdict(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"explore": ["--workload", "x" * 300]}.get(command, ["x" * 300])
    assert main([command, *words]) == 4
    told = capsys.readouterr().err
    assert told.startswith("pawl: ")
    assert "[Errno 36] File name too long" in told
    assert told.count("\n") == 1


def test_more_than_memory_has_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ("8 PiB are too many", ""):
        failing_with(MemoryError(words), monkeypatch)
        assert main(["fail"]) == 1
        told = capsys.readouterr().err
        assert told.startswith("pawl: there is not enough memory: ")
        assert told.count("\n") == 1
        assert words in told


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("model\n\x1b[31m x\x00", r"model \x1b[31m x\x00"),
        ("\u202etxt.\udcff", r"\u202etxt.\udcff"),
        ("é…漢 😀", "é…漢 😀"),
        ("a" * 5000, "a" * 1000 + "…"),
    ],
)
def test_what_a_stranger_wrote_does_nothing_to_a_terminal(
    words: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_with(CommandFailed(words), monkeypatch)
    assert main(["fail"]) == 1
    assert capsys.readouterr().err == f"pawl: {shown}\n"


def test_a_defect_of_ours_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(KeyError("row"), monkeypatch)
    with pytest.raises(KeyError):
        main(["fail"])


def test_ctrl_c_ends_a_command_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(KeyboardInterrupt(), monkeypatch)
    assert main(["fail"]) == 130


def test_ctrl_c_while_a_command_is_imported_leaves_no_trace_either(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> types.ModuleType:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert main(["serve"]) == 130


@pytest.mark.parametrize(("module", "names"), [*FAILURES.items(), *USAGE.items()])
def test_every_failure_named_by_the_cli_exists(module: str, names: tuple[str, ...]) -> None:
    # They are named as text so that nothing is imported for them: a class that moves must not go unnoticed.
    classes = [getattr(importlib.import_module(module), name) for name in names]
    assert all(issubclass(each, Exception) for each in classes)


def test_a_model_that_is_not_there_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--model", "no-such-model", "hello"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("pawl: model 'no-such-model'")


def test_a_reader_that_goes_away_is_no_failure(tmp_path: Path) -> None:
    trace = write(tmp_path, sound_run().records)
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m pawl.cli audit --json {shlex.quote(str(trace))} | true; "
        "test ${PIPESTATUS[0]} -eq 0",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- serve ----


def test_the_line_to_paste_is_one_command_with_a_json_body() -> None:
    line = curl_line("http://127.0.0.1:8000", key_needed=False)
    words = shlex.split(line.removeprefix("try: "))
    assert words[0] == "curl"
    assert "http://127.0.0.1:8000/v1/completions" in words
    assert json.loads(words[words.index("-d") + 1])["prompt"]
    assert "authorization" not in line


def test_the_line_to_paste_never_shows_the_key_and_connects_to_a_real_address() -> None:
    line = curl_line("http://0.0.0.0:8000", key_needed=True)
    assert "authorization: Bearer $PAWL_API_KEY" in line
    assert "http://127.0.0.1:8000/" in line
    assert "http://[::1]:80/" in curl_line("http://[::]:80", key_needed=False)
    line = curl_line("http://127.0.0.1:8000", key_needed=False, only_vectors=True)
    assert "/v1/embeddings" in line
    assert '{"input": ' in line


def test_a_port_in_use_is_told_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    from pawl.http.server import open_socket

    with open_socket("127.0.0.1", 0) as taken:
        # A model that does not exist: had it been looked for, it would be what is told.
        assert main(["serve", "no-such-model", "--port", str(taken.getsockname()[1])]) == 1
    assert "in use" in capsys.readouterr().err


# ---- audit ----


def test_audit_ends_with_the_verdict_as_its_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = sound_run()
    assert main(["audit", "--no-replay", str(write(tmp_path / "sound", story.records))]) == 0
    assert capsys.readouterr().out.startswith("PASS")
    # The story names no loop that could decide it again.
    assert main(["audit", str(tmp_path / "sound")]) == 2
    assert "no decision was made again" in capsys.readouterr().out
    assert main(["audit", str(write(tmp_path / "open", without(story, "closed")))]) == 2
    assert capsys.readouterr().out.startswith("INCOMPLETE")
    assert main(["audit", str(write(tmp_path / "wrong", without(story, "admit 1")))]) == 1
    assert capsys.readouterr().out.startswith("VIOLATION")
    damaged = write(tmp_path / "damaged", story.records)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert main(["audit", str(damaged)]) == 3
    assert capsys.readouterr().out.startswith("CORRUPT")


def test_audit_without_a_trace_to_read_is_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(tmp_path / "nowhere")]) == 4
    assert "nowhere" in capsys.readouterr().err


def test_audit_alone_reads_the_newest_run_of_the_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAWL_CACHE", str(tmp_path))
    write(tmp_path / "traces", without(sound_run(), "closed"))
    write(tmp_path / "traces", sound_run().records)
    assert main(["audit", "--json", "--no-replay"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "PASS"


# ---- replay ----


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["audit"], 2),
        (["replay"], 4),
        (["trace", "show"], 4),
        (["trace", "export", "jsonl"], 4),
        (["trace", "export", "chrome"], 4),
        (["trace", "export", "scenario"], 4),
    ],
)
def test_a_trace_of_another_version_cannot_be_judged_and_one_line_says_why(
    words: list[str], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["-o", str(tmp_path / "out")] if words[0] == "trace" else []
    assert main([*words, str(VERSION_1), *output]) == status
    told = "".join(capsys.readouterr())
    assert [line for line in told.splitlines() if "version 1; this Pawl reads version 2" in line], told


def test_replay_ends_with_what_came_out_as_its_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = record_run(3)
    assert main(["replay", str(write(tmp_path / "whole", records))]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"SAME: {len(records)} records")
    closed = next(index for index, record in enumerate(records) if isinstance(record, Closed))
    assert main(["replay", str(write(tmp_path / "open", records[:closed]))]) == 2
    assert "never closed" in capsys.readouterr().out
    assert main(["replay", str(write(tmp_path / "changed", [*records[:9], *records[10:]]))]) == 1
    assert "DIFFERS at record 10" in capsys.readouterr().out
    assert main(["replay", str(write(tmp_path / "gap", [*records, Gap(1, "full disk")]))]) == 2
    assert main(["replay", str(tmp_path / "nowhere")]) == 4


# ---- trace ----


def test_a_trace_goes_out_as_json_lines_and_comes_back_as_the_same_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write(tmp_path / "first", record_run(3))
    assert main(["trace", "export", "jsonl", str(written), "--output", str(tmp_path / "lines")]) == 0
    assert main(["trace", "import", str(tmp_path / "lines"), str(tmp_path / "second")]) == 0
    assert "records" in capsys.readouterr().out
    assert main(["trace", "export", "jsonl", str(tmp_path / "second")]) == 0
    assert capsys.readouterr().out == (tmp_path / "lines").read_text()


@pytest.mark.parametrize("name", ["chrome", "otlp"])
def test_a_trace_goes_out_as_one_json_object(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "export", name, str(write(tmp_path, record_run(3)))]) == 0
    assert json.loads(capsys.readouterr().out)


def test_what_is_before_the_damage_goes_out_and_the_damage_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = write(tmp_path, sound_run().records)
    damaged.write_bytes(damaged.read_bytes()[:-10])
    assert main(["trace", "export", "jsonl", str(damaged)]) == 1
    assert "torn" in capsys.readouterr().err


def test_lines_that_are_no_records_are_refused_by_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lines").write_text('{"record": "Idled", "time": 1.0}\n{"record": "Nonsense"}\n')
    assert main(["trace", "import", str(tmp_path / "lines"), str(tmp_path / "traces")]) == 1
    assert "line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["audit"], ["replay"], ["trace", "show"], ["trace", "export", "jsonl"], ["trace", "export", "scenario"]]
)
def test_every_command_that_reads_a_trace_says_alike_that_there_is_none(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, str(tmp_path / "nowhere")]) == 4
    told = capsys.readouterr().err
    assert "nowhere" in told
    assert len(told.splitlines()) == 1
