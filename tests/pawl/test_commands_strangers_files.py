"""Templates, schedules and settings that strangers wrote, damaged at random: one clear line, or they work."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.attack_shots import BIG, LEAVES
from benchmarks.fuzz_bodies import changed, damaged
from pawl.actors.simulation.choice import Choices
from pawl.actors.simulation.exploration import silence
from pawl.actors.text.invalid import InvalidRequest
from pawl.actors.text.template import ChatTemplate
from pawl.cli import main
from pawl.config import ConfigError, ServerConfig, build_config
from pawl.testing.scenario import Scenario
from tests.actors.vocabularies import smollm2
from tests.mutants.everything import MUTANTS
from tests.mutants.mutant import planted
from tests.mutants.places import place_of

LONGEST_LINE = 2000
NOW = datetime(2026, 3, 9, tzinfo=UTC)
CHAT: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
TEMPLATES = (
    smollm2().chat_templates["default"],
    "{% for m in messages %}{{ m['role'] | upper ~ ': ' + m.content.split(' ')[0] }}{% endfor %}"
    "{{ tools | tojson(2) }}",
    "{% set ns = namespace(n=0) %}{% for m in messages if m.role != 'x' %}{% set ns.n = ns.n + 1 %}"
    "{{ loop.index0 * 3 ** ns.n }}{{ '%-5s' % m.content }}{% endfor %}{{ raise_exception('no') if ns.n > 5 }}",
    "{% macro say(m, depth=1) %}{{ m[depth:-1:2] | join(',') | trim }}{% endmacro %}{{ say([1, 2, 3, 4] * 4) }}",
)


def is_one_line(text: str) -> bool:
    return "\n" not in text and len(text) < LONGEST_LINE


SIZES = [40, pytest.param(20_000, marks=pytest.mark.slow)]


class Template(msgspec.Struct):
    """Where a template comes from."""

    source: str
    bos_token: str = "<s>"
    eos_token: str = "</s>"

    @property
    def chat_templates(self) -> dict[str, str]:
        return {"default": self.source}


@pytest.mark.parametrize("count", SIZES)
def test_a_damaged_template_renders_or_says_why_not(count: int) -> None:
    source, refused = random.Random(count), 0
    for _ in range(count):
        text = source.choice(TEMPLATES)
        for _ in range(source.choice((1, 2, 4))):
            text = damaged(text.encode(), source).decode(errors="replace") or " "
        why = None
        try:
            ChatTemplate(Template(text)).render(CHAT, {"tools": [{"a": 1}]}, NOW)
        except InvalidRequest as error:
            why = error.message
        assert why is None or is_one_line(why), text
        refused += why is not None
    assert refused > count // 5


def _told(words: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """The status of a command, which must not end in a traceback."""
    with silence():
        status = main(words)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err, err
    return status


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One that `pawl explore` would save."""
    mutant = next(each for each in MUTANTS if each.name == "abort_that_comes_early_is_lost")
    with planted(mutant):
        found = place_of(mutant.name).explored().found
    assert found is not None
    path = tmp_path_factory.mktemp("schedule") / "schedule.json"
    found.save(path)
    return path.read_bytes()


def _otherwise(data: bytes, source: random.Random) -> bytes:
    """Damaged as bytes, or as what it says."""
    if source.random() < 0.3:
        return damaged(data, source)
    value = json.loads(data)
    name = source.choice(sorted(value["facts"]))
    if source.random() < 0.7 and value["facts"][name].startswith("{"):
        value["facts"][name] = json.dumps(changed(json.loads(value["facts"][name]), source))
        return json.dumps(value).encode()
    return json.dumps(changed(value, source)).encode()


@pytest.mark.parametrize("count", SIZES)
def test_a_damaged_schedule_is_run_or_refused_in_one_line(
    schedule: bytes, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, path = random.Random(count), tmp_path / "schedule.json"
    for _ in range(count):
        path.write_bytes(_otherwise(schedule, source))
        assert _told(["replay", str(path)], capsys) in range(5), path.read_bytes()


@pytest.mark.parametrize("read", [Choices.load, Scenario.load])
def test_no_more_is_read_than_a_schedule_or_a_scenario_can_have(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate((64 << 20) + 1)
    with pytest.raises(ValueError, match="64 MiB"):
        read(path)


@pytest.mark.parametrize("count", [400, pytest.param(50_000, marks=pytest.mark.slow)])
def test_a_wrong_setting_is_named_in_one_line(count: int) -> None:
    source, names, refused = random.Random(count), sorted(ServerConfig.__struct_fields__), 0
    for _ in range(count):
        some = source.sample(names, source.randint(1, 3))
        settings = {name: source.choice((*LEAVES, *BIG, "auto", "1", 0.5)) for name in some}
        why = None
        try:
            build_config(settings)
        except ConfigError as error:
            why = str(error)
        assert why is None or is_one_line(why), settings
        refused += why is not None
    assert refused > count // 2
