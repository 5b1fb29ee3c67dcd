"""Whatever is fixed on the command line of `pawl explore` is explored, or refused in one line."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from pawl.actors.simulation.strategies.simple import Fair
from pawl.cli import main
from pawl.commands.failures import CommandFailed, UsageError
from pawl.exploration.fixed import fields, flag_of
from pawl.exploration.task import load_scenario, workload_of
from pawl.features.server import CHOICES
from pawl.testing import Arrival, Shape, Workload, cluster, explore_workload
from pawl.testing.scenario import Scenario
from pawl.testing.workload import NAMES
from tests.mutants.hunting import task_with

COMBINATIONS, SOME = 800, 40
WORDS = CHOICES | {"placement": CHOICES["router_policy"], "adapter": ("", *NAMES), "salt": ("", "salt")}
CELLS = ("all", "overlap", "lockstep-mixed", "pipeline")


def words(seed: int) -> list[str]:
    """Some fields of the server and of requests with values of their types, most of which can be had together."""
    chance = random.Random(seed)
    server, request = fields()
    chosen = chance.sample(sorted(server), chance.choice((1, 2, 3, 4))) + chance.sample(
        sorted(request), chance.choice((0, 0, 1, 2))
    )
    kinds = {info.name: info.type for struct in (Arrival, Shape) for info in msgspec.structs.fields(struct)}
    flags = [f"{flag_of(name)}={_value(name, kinds[name], chance)}" for name in chosen]
    return [*flags, "--cell", chance.choice(CELLS), "--cache", chance.choice(("any", "any", "radix", "none"))]


def _value(name: str, kind: Any, chance: random.Random) -> object:
    if name in WORDS:
        return chance.choice(WORDS[name])
    told = str(kind)
    if "bool" in told:
        return chance.choice(("true", "false"))
    numbers = ("0.01", "0.3", "1", "2") if "float" in told else ("0", "1", "1", "2", "2", "3", "4", "6", "16")
    fits = [number for number in numbers if _is(number, kind)]
    return chance.choice([*fits, "none"] if type(None) in get_args(kind) else fits)


def _is(number: str, kind: Any) -> bool:
    try:
        msgspec.convert(number, kind, strict=False)
    except msgspec.ValidationError:
        return False
    return True


def drawn(seed: int) -> list[Workload]:
    """Workloads with what was fixed; none: it was refused."""
    task = task_with(words(seed), seed, 0.0)
    try:
        return [workload_of(task, seed + number) for number in range(4)]
    except UsageError:
        return []


def test_some_fields_are_fixed_and_what_is_drawn_beside_them_can_be_made_or_they_are_refused() -> None:
    made = [drawn(seed) for seed in range(SOME)]
    for workloads in made:
        for workload in workloads[:1]:
            cluster(workload, Fair())
    assert SOME / 2 < sum(map(bool, made)) < SOME


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_any_fields_are_fixed_and_explored_or_refused(part: int) -> None:
    for seed in range(part, COMBINATIONS, 8):
        for workload in drawn(seed)[:1]:
            found = explore_workload(workload, "fair", 1, shrink=False).found
            assert found is None, f"{words(seed)}: {found}"


@pytest.mark.parametrize("kind", range(6))
def test_replicas_that_prefill_have_pages_below_the_device_in_every_kind_of_workload(kind: int) -> None:
    shape = workload_of(task_with(["--prefillers", "1"], 0, 0.0), kind).shape
    assert (shape.prefillers, shape.cache, shape.window) == (1, "radix", None)
    assert shape.host_pages > 0


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--prefillers", "1", "--host-pages", "0"], "they need host or storage pages"),
        (["--prefillers", "1", "--window", "3"], "lower cache tiers keep no window pages"),
        (["--prefillers", "1", "--max-replicas", "3"], "beside replicas that prefill, none come and go"),
        (["--replicas", "3", "--max-replicas", "2"], "3 replicas are more than the 2 that there may be"),
        (["--stages", "2", "--cell", "overlap"], "2 stages need the pacing pipeline"),
        (["--prompt-lookup-min", "3", "--prompt-lookup-max", "2"], "a lookup of at least 3 and at most 2 tokens"),
        (["--page-size", "4", "--prefill-chunk", "2"], "a chunk of 2 is less than a page of 4 tokens"),
        (["--num-pages", "1000000000"], "a simulated server has room for"),
        (["--placement", "nonsense"], "placement: 'nonsense' is none of round_robin, "),
        (["--speculate", "nonsense"], "speculate: 'nonsense' is none of none, "),
        (["--write-policy", "nonsense"], "write_policy: 'nonsense' is none of write-through, "),
        (["--num-window-pages", "3"], "window pages need a window"),
    ],
)
def test_what_cannot_be_had_together_is_refused_in_one_line(
    flags: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", "--seconds", "1", *flags]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert line in told[0]
    for seed in range(60):  # whatever kind of workload comes first
        with pytest.raises(UsageError, match=line):
            workload_of(task_with(flags, seed, 0.0), seed)


def test_a_scenario_of_a_server_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """Of one field by the reader, of several by the check."""
    arrivals = (Arrival(prompt=(97,), max_new_tokens=1),)
    for shape, told in ((Shape(replicas=0), "Expected `int` >= 1"), (Shape(prefillers=1), "host or storage pages")):
        Scenario(workload=Workload(arrivals=arrivals, shape=shape)).save(tmp_path / "scenario.json")
        with pytest.raises(CommandFailed, match=told):
            load_scenario(tmp_path / "scenario.json")


def test_none_is_a_word_where_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--speculate", "none", "--timeout-s", "none"]
    task = task_with(flags, 0, 0.0)
    assert (task.fixed, task.of_requests) == ({"speculate": "none"}, {"timeout_s": None})
