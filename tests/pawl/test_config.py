"""One Struct is the source of flags, file and checks: so each of them must agree with it."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pawl.build.parts import check_settings, make_loop_config
from pawl.config import GROUPS, STREAMED_STEP_MS, ConfigError, ServerConfig, all_settings, build_config, of_server
from pawl.flags import add_flags, config_from
from pawl.loops.pacing import PACINGS
from pawl.loops.policy import POLICIES
from pawl.memory.prefix.order import POLICIES as EVICTION_POLICIES
from pawl.memory.prefix.select import CACHES, CORES
from pawl.settings import Setting

LAUGHS = "host: &x0 [x, x]\n" + "".join(f"host: &x{n + 1} [{', '.join([f'*x{n}'] * 9)}]\n" for n in range(9))
"""Two thousand million values by aliases of aliases."""


def parse(*words: str) -> ServerConfig:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser)
    return config_from(parser.parse_args(words))


def write(folder: Path, text: str) -> Path:
    path = folder / "server.yaml"
    path.write_text(text)
    return path


def example(setting: Setting) -> Any:
    """A legal value that is not the default."""
    if setting.kind is bool:
        return not setting.default
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    if setting.name == "disaggregate":
        return "1p1d"
    value = {int: 7, float: 0.5, str: "seven"}[setting.kind]
    return (value,) if setting.several else value


def words_for(setting: Setting, value: Any) -> list[str]:
    if setting.kind is bool:
        return [setting.flag if value else setting.flag.replace("--", "--no-", 1)]
    values = value if setting.several else [value]
    return [word for each in values for word in (setting.flag, str(each))]


def test_nothing_given_gives_the_defaults() -> None:
    assert parse() == ServerConfig()


@pytest.mark.parametrize("setting", all_settings(), ids=lambda setting: setting.name)
def test_every_setting_has_a_flag_that_sets_it_and_nothing_else(setting: Setting) -> None:
    value = example(setting)
    assert parse(*words_for(setting, value)) == msgspec.structs.replace(ServerConfig(), **{setting.name: value})


@pytest.mark.parametrize("setting", all_settings(), ids=lambda setting: setting.name)
def test_every_setting_can_stand_in_the_file_with_dashes_or_underscores(setting: Setting, tmp_path: Path) -> None:
    value = example(setting)
    expected = msgspec.structs.replace(ServerConfig(), **{setting.name: value})
    for name in (setting.name, setting.name.replace("_", "-")):
        file = write(tmp_path, f"{name}: {msgspec.json.encode(value).decode()}\n")
        assert build_config({}, file) == expected


@pytest.mark.parametrize("setting", all_settings(), ids=lambda setting: setting.name)
def test_every_setting_has_a_group_and_help(setting: Setting) -> None:
    assert setting.group in GROUPS
    assert setting.description


def test_the_command_line_goes_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, "port: 1\npolicy: lpm\n")
    config = parse("--config", str(file), "--port", "2")
    assert (config.port, config.policy, config.pacing) == (2, "lpm", "overlap")


def test_a_flag_can_undo_what_the_file_says(tmp_path: Path) -> None:
    assert parse("--config", str(write(tmp_path, "trace: false\n")), "--trace").trace


def test_null_in_the_file_means_not_set(tmp_path: Path) -> None:
    assert build_config({}, write(tmp_path, "kv_tokens: null\n")).kv_tokens is None


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert build_config({}, write(tmp_path, "# nothing yet\n")) == ServerConfig()


@pytest.mark.parametrize(("wrong", "nearest"), [("prot", "port"), ("max_runing", "max_running"), ("polcy", "policy")])
def test_an_unknown_setting_is_refused_and_the_nearest_named(wrong: str, nearest: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{wrong!r}; did you mean {nearest!r}") as caught:
        build_config({}, write(tmp_path, f"{wrong}: 1\n"))
    assert caught.value.field == wrong


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("port", 70_000, "65535"),
        ("port", "http", "int"),
        ("port", True, "int"),
        ("max_running", 0, ">= 1"),
        ("request_timeout_s", 0, "> 0"),
        ("policy", "fifo", "one of fcfs, lpm"),
        ("mixed", "yes", "bool"),
        ("model", "", "length"),
        ("kv_tokens", -1, ">= 1"),
        ("log_level", None, "one of debug"),
        ("kv_tokens", 10**15, "<= "),
        ("max_body_mb", float("inf"), "<= "),
        ("request_timeout_s", float("nan"), "> 0"),
        ("seed", 1 << 70, ""),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_is_allowed(field: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({field: value})
    assert caught.value.field == field
    assert said in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- port", "mapping"),
        ("port: [1", "not YAML"),
        ("kv-tokens: 1\nkv_tokens: 2\n", "twice"),
        ("{1: 2}", "'1'"),
        ("port: 2026-13-45", "YAML"),
        pytest.param("port: " + "[" * 2000, "not YAML", marks=pytest.mark.slow),  # a second, in which it is deep
        (LAUGHS, "10000 values"),
        ("port: &a [*a]", "10000 values"),
        ("#" * (1 << 20) + "\n", "more than 1 MiB"),
    ],
    ids=lambda each: each[:20],
)
def test_a_file_that_is_no_settings_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        build_config({}, write(tmp_path, text))


@pytest.mark.parametrize("kind", ["endless", "pipe"])
def test_what_is_no_file_of_settings_is_not_read(kind: str, tmp_path: Path) -> None:
    path = Path("/dev/zero") if kind == "endless" else tmp_path / "pipe"
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(ConfigError, match=f"{path.name} is not a file"):
        build_config({}, path)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        build_config({}, tmp_path / "missing.yaml")


def test_a_file_cannot_make_objects(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not YAML"):
        build_config({}, write(tmp_path, "model: !!python/object/apply:os.getcwd []\n"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.text(alphabet="port: []{}-!&*#?'\"\n012_.", max_size=40))
def test_no_file_content_raises_anything_but_a_config_error(text: str, tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ConfigError):
        build_config({}, file)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"num_speculative_tokens": 3}, "num_speculative_tokens: nothing is drafted"),
        ({"prompt_lookup_max": 3}, "prompt_lookup_max: nothing is drafted"),
        ({"speculate": "ngram", "backend": "torch"}, "compiled CPU kernels"),
        ({"speculate": "ngram", "device": "cuda"}, "compiled CPU kernels"),
        ({"speculate": "ngram", "prompt_lookup_min": 6}, "at most prompt_lookup_max, which is 5, not 6"),
    ],
)
def test_settings_of_drafts_that_mean_nothing_are_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_settings(build_config(asked))


def test_drafts_are_set_up_as_asked_and_otherwise_not_at_all() -> None:
    sizes: dict[str, Any] = {"num_pages": 64, "max_position": 512, "prefill_chunk": 64, "weights": ""}
    assert make_loop_config(ServerConfig(), **sizes).speculation is None
    made = make_loop_config(ServerConfig(speculate="ngram", num_speculative_tokens=5), **sizes).speculation
    assert made is not None
    assert (made.num_speculative_tokens, made.prompt_lookup_min, made.prompt_lookup_max) == (5, 3, 5)


def test_choices_are_those_of_the_rooms_that_take_them() -> None:
    choices = {setting.name: setting.choices for setting in all_settings()}
    assert set(choices["policy"] or ()) == set(POLICIES)
    assert set(choices["pacing"] or ()) == set(PACINGS)
    assert set(choices["cache"] or ()) == set(CACHES)
    assert set(choices["eviction"] or ()) == set(EVICTION_POLICIES)
    assert choices["cache_core"] == CORES


@pytest.mark.parametrize(
    ("said", "alone", "served"), [({}, None, STREAMED_STEP_MS / 1000), ({"max_step_ms": 7}, 0.007, 0.007)]
)
def test_where_nothing_is_said_only_a_servers_steps_are_bounded(
    said: dict[str, Any], alone: float | None, served: float
) -> None:
    def bound(config: ServerConfig) -> float | None:
        return make_loop_config(config, num_pages=64, max_position=512, prefill_chunk=128, weights="").max_step_s

    config = build_config(said)
    assert (bound(config), bound(of_server(config))) == (alone, served)


def test_what_is_shown_hides_keys() -> None:
    shown = ServerConfig(api_key="hidden-1", admin_api_key="hidden-2").public()
    assert "hidden" not in str(shown)
    assert ServerConfig().public()["api_key"] is None
    assert shown["port"] == ServerConfig().port


def test_traces_go_to_the_cache_folder_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAWL_CACHE", str(tmp_path))
    assert ServerConfig().trace_dir == str(tmp_path / "traces")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ServerConfig(trace_dir="~/here").trace_dir == str(tmp_path / "here")
