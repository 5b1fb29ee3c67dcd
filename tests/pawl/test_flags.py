"""Other engines' flags do what they do there or are refused by name; help is short, and whole when asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from pawl.aliases import ALIASES, TAKEN, VALUES, Alias, table
from pawl.cli import main
from pawl.config import ServerConfig, all_settings
from pawl.flags import add_flags, config_from

SETTINGS = {setting.name: setting for setting in all_settings()}
EXAMPLES = {
    "--hicache-write-policy": ("write_back", "write-back"),
    "--max-model-len": ("16K", 16384),
    "--speculative-algorithm": ("NGRAM", "ngram"),
    "--speculative-num-draft-tokens": ("7", 6),
}
PAGE = Path(__file__).parents[2] / "docs" / "clients.md"


def parse(*words: str) -> ServerConfig:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return config_from(parser.parse_args(words))


def example(alias: Alias) -> tuple[list[str], object]:
    """Words of a command line, and the value that our setting then has."""
    setting = SETTINGS[alias.setting]
    if alias.value is not TAKEN:
        return [alias.flag], alias.value
    text, value = EXAMPLES.get(alias.flag, ("", None))
    if not text:
        value = setting.choices[0] if setting.choices else {int: 7, float: 0.5, str: "seven"}[setting.kind]
        text = str(value)
    return [alias.flag, text], (value,) if setting.several else value


@pytest.mark.parametrize("alias", [row for row in ALIASES if row.setting], ids=lambda row: row.flag)
def test_a_flag_of_another_engine_sets_ours(alias: Alias) -> None:
    words, value = example(alias)
    assert getattr(parse(*words), alias.setting) == value


@pytest.mark.parametrize("alias", [row for row in ALIASES if not row.setting], ids=lambda row: row.flag)
def test_a_flag_that_means_nothing_here_is_refused_with_what_to_use(
    alias: Alias, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(alias.flag, "1")
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert alias.flag in told
    assert alias.note in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--chunked-prefill-size", "-1"], "always computed in chunks"),
        (["--scheduling-policy", "priority"], "negate them"),
        (["--max-model-len", "many"], "invalid literal"),
        (["--speculative-algorithm", "EAGLE"], "from a request's own text"),
        (["--speculative-num-draft-tokens", "1"], "at least 2"),
        (["--schedule-policy", "sjf"], "invalid choice"),
        (["--dtype", "float16"], "invalid choice"),
    ],
)
def test_a_value_that_means_something_else_there_is_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*words)
    assert told in capsys.readouterr().err


def test_values_of_other_engines_are_understood() -> None:
    for setting, values in VALUES.items():
        for theirs, ours in values.items():
            assert getattr(parse("--" + setting.replace("_", "-"), theirs), setting) == ours


def test_a_model_may_have_several_names() -> None:
    assert parse("--served-model-name", "a", "--served-model-name", "b").served_model_name == ("a", "b")


def test_the_table_stands_in_the_docs() -> None:
    text = PAGE.read_text()
    assert [line for line in table() if line not in text] == []


@pytest.mark.parametrize(
    ("command", "most"),
    [(["serve"], 210), (["generate"], 75), (["chat"], 75), (["bench", "offline"], 85), (["doctor"], 60)],
)
def test_help_is_short_and_help_all_is_whole(
    command: list[str], most: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    texts = []
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            main([*command, word])
        assert ended.value.code == 0
        texts.append(capsys.readouterr().out)
    short, whole = texts
    assert len(short.splitlines()) <= most
    assert "--help-all" in short
    assert "--chunked-prefill-size" not in short
    assert "--chunked-prefill-size" in whole
    assert "--fetch-lease-s" in whole
