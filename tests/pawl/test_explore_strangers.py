"""A stranger's own parts: what is wrong with one is said at once, in a few requests, as the fault of that part."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from pawl.actors.simulation.strategies.drawn import Drawn
from pawl.cli import main
from pawl.exploration.task import workload_of
from pawl.loops.select import make_memory
from pawl.testing import Workload, check_schedule, explore_workload, load_schedule, schedules, workloads
from pawl.testing.parts import PartFailed
from tests.mutants.hunting import task_with

PARTS = """\
from pawl.actors.scheduler import Scheduler
from pawl.loops.orders.requests import Abort
from pawl.memory.prefix.base import Eviction
from pawl.memory.prefix.radix import RadixCache


class Policy:
    name = "mine"


class Unfair(Policy):
    def order(self, rows, waiting):
        return list(reversed(rows))


class Raises(Policy):
    def order(self, rows, waiting):
        return sorted(rows, key=lambda row: waiting.table.info(row).importance)


class Repeats(Policy):
    def order(self, rows, waiting):
        return [*rows, rows[0]]


class Drops(Policy):
    def order(self, rows, waiting):
        return rows[1:]


class Foreign(Policy):
    def order(self, rows, waiting):
        return [max(rows) + 1, *rows]


class Writes(Policy):
    def order(self, rows, waiting):
        waiting.table.priority[list(rows)] += 1
        return rows


class Loses(RadixCache):
    def evict(self, count):
        gone = super().evict(count)
        return Eviction(gone.pages[1:], gone.fence)


class Invents(RadixCache):
    def evict(self, count):
        gone = super().evict(count)
        return Eviction(gone.pages + 1, gone.fence)


class Stumbles(RadixCache):
    def insert(self, tokens, pages, namespace, hold, fence, priority=0):
        return {}["nothing"]


class Keeps(Scheduler):
    def receive(self, message):
        if not isinstance(message, Abort):
            super().receive(message)


class Trips(Scheduler):
    def settled(self):
        super().settled()
        if len(self.loop.table) > 1:
            self.loop.nothing()


class Hides(RadixCache):
    def insert(self, tokens, pages, namespace, hold, fence, priority=0):
        done = super().insert(tokens, pages, namespace, hold, fence, priority)
        return done._replace(adopted=pages[: len(done.adopted)])


class Takes(Policy):
    def order(self, rows, waiting):
        waiting.waiting.pop(rows[-1])
        return rows


class Strikes(Policy):
    def order(self, rows, waiting):
        waiting.table.info(rows[0]).strikes += 1
        return rows


class Hurries(RadixCache):
    def evict(self, count):
        return super().evict(count)._replace(fence=0)


class Leaves(Policy):
    def order(self, rows, waiting):
        raise SystemExit(3)


class Jumbles(Policy):
    def order(self, rows, waiting):
        return set(rows)


class Scribbles(Policy):
    def order(self, rows, waiting):
        waiting.table.known(rows[0])[0] = 65
        return rows


class Grabs(Policy):
    def order(self, rows, waiting):
        waiting.memory.reserve(1)
        return rows


class Holds(Policy):
    def order(self, rows, waiting):
        tokens, info = waiting.table.known(rows[0]), waiting.table.info(rows[0])
        waiting.memory.cache.match_and_hold(tokens, info.namespace)
        return rows


class Remembers(Policy):
    max_overtaken, calls = None, 0

    def order(self, rows, waiting):
        type(self).calls += 1
        return rows[::-1] if self.calls % 2 else rows


class Silent(RadixCache):
    def evict(self, count):
        kept = list(self.events)
        gone = super().evict(count)
        self.events[:] = kept
        return gone


class Lists(RadixCache):
    def evict(self, count):
        gone = super().evict(count)
        return gone._replace(pages=gone.pages.tolist())


class Finds(RadixCache):
    def match_and_hold(self, tokens, namespace, priority=0):
        hold = super().match_and_hold(tokens, namespace, priority)
        return hold if hold.num_tokens else None


class Vague(Policy):
    max_overtaken = "many"

    def order(self, rows, waiting):
        return rows


class Answers(Policy):
    def order(self, rows, waiting):
        return [bool(row) for row in rows]


class Unshown(Policy):
    def __repr__(self):
        raise ValueError("not yet")

    def order(self, rows, waiting):
        return [self for _ in rows]


class Rewrites(RadixCache):
    def match_and_hold(self, tokens, namespace, priority=0):
        hold = super().match_and_hold(tokens, namespace, priority)
        tokens += 1
        return hold


class Undated(RadixCache):
    def evict(self, count):
        return super().evict(count)._replace(fence=float("nan"))


class Repays(RadixCache):
    def release(self, hold, fence, used=True):
        super().release(hold, fence, used)
        super().release(hold, fence, used)
"""
FAULTS = {
    "policy:Unfair": r"your policy .*parts.py:Unfair \(order, parts.py:12\) put rows [0-9and ]+ before row \d",
    "policy:Raises": r"your policy .*parts.py:Raises \(order, parts.py:17\) raised AttributeError",
    "policy:Repeats": r"your policy .*parts.py:Repeats \(order, parts.py:22\) returned row 0 twice",
    "policy:Drops": r"your policy .*parts.py:Drops \(order, parts.py:27\) left out row 0",
    "policy:Foreign": r"your policy .*parts.py:Foreign \(order, parts.py:32\) returned row \d+, which does not wait",
    "policy:Writes": r"your policy .*parts.py:Writes \(order, parts.py:37\) wrote to the table of requests: priority",
    "cache:Loses": r"your cache .*parts.py:Loses \(evict, parts.py:43\) lost 1 of its pages",
    "cache:Invents": (
        r"your cache .*parts.py:Invents \(evict, parts.py:49\) "
        r"(gave back page \d+, (which it does not have|which \d hold|and keeps)|still has what it gave back, page \d+)"
    ),
    "cache:Stumbles": r"your cache .*parts.py:Stumbles \(insert, parts.py:55\) raised KeyError",
    "cache:Hides": r"your cache .*parts.py:Hides \(insert, parts.py:73\) does not say that it took page \d+: it has",
    "policy:Takes": r"your policy .*parts.py:Takes \(order, parts.py:79\) wrote to the queues: waiting",
    "policy:Strikes": r"your policy .*Strikes \(order, parts.py:85\) wrote to what is known of request \d+: strikes",
    "cache:Hurries": (
        r"your cache .*parts.py:Hurries \(evict, parts.py:91\) "
        r"gave back page \d+, which step \d+ may touch, behind step 0"
    ),
    "policy:Leaves": r"your policy .*parts.py:Leaves \(order, parts.py:96\) raised SystemExit",
    "policy:Jumbles": r"your policy .*Jumbles \(order, parts.py:101\) returned \{\d.*\}, which is a set",
    "policy:Scribbles": r"your policy .*Scribbles \(order, parts.py:106\) wrote to the table of requests: _prompts",
    "policy:Grabs": r"your policy .*Grabs \(order, parts.py:112\) wrote to memory: who has its pages",
    "policy:Holds": r"your policy .*Holds \(order, parts.py:118\) wrote to memory: what is held of the cache",
    "policy:Remembers": r"one_decision_log.*: look whether your policy .*Remembers decides by more than it is given",
    "cache:Silent": r"your cache .*Silent \(evict, parts.py:133\) tells with its `events` that pages \[\] are removed",
    "cache:Lists": r"your cache .*Lists \(evict, parts.py:141\) returned Eviction.*, whose `pages` are no array",
    "cache:Finds": r"your cache .*Finds \(match_and_hold, parts.py:147\) returned None, whose `pages` are no array",
    "policy:Vague": r"your policy .*Vague \(order, parts.py:155\) states max_overtaken 'many', which is no number",
    "policy:Answers": r"your policy .*Answers \(order, parts.py:160\) returned (True|False), which is no row",
    "policy:Unshown": r"your policy .*Unshown \(order, parts.py:168\) returned a Unshown, whose `repr` raises",
    "cache:Rewrites": r"your cache .*Rewrites \(match_and_hold, parts.py:173\) wrote to the tokens that it was",
    "cache:Undated": r"your cache .*Undated \(evict, parts.py:180\) returned the fence nan, which is no number",
    "cache:Repays": r"your cache .*Repays \(release, parts.py:185\) raised MemoryViolation",
    "scheduler:Keeps": r"abort_is_total, request \d+: the scheduler was told to end it .* and has not",
    "scheduler:Trips": r"ActorFailed: scheduler: AttributeError",
}


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder of a stranger."""
    path = tmp_path / "parts.py"
    path.write_text(PARTS)
    return path


def explored(part: str, path: Path, *words: str) -> int:
    kind, name = part.split(":")
    limits = ["--seconds", "600", "--workers", "1", "--seed", "1", "--output", str(path.with_name("schedule.json"))]
    return main(["explore", f"--{kind}", f"{path}:{name}", *limits, *words])


DOCUMENTED = {
    "policy:LastComeFirstServed": "put rows 2 and 1 before row 0",
    "cache:TwoAtATime": "lost 1 of its pages",
    "scheduler:Deaf": "the scheduler was told to end it",
}


def some_by_night(parts: Iterable[str], by_night: Collection[str]) -> list[Any]:
    """The parts; what takes long to be made small is left to the slow tests where another one of its kind is not."""
    return [pytest.param(part, marks=pytest.mark.slow) if part in by_night else part for part in parts]


@pytest.mark.parametrize("part", some_by_night(DOCUMENTED, {"policy:LastComeFirstServed", "cache:TwoAtATime"}))
def test_the_parts_of_the_documentation_are_shown_as_it_says(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "checking.md").read_text()
    name = part.partition(":")[2]
    source = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if f"class {name}" in block)
    (tmp_path / "mine.py").write_text(source)
    assert len(source.splitlines()) <= 12
    assert explored(part, tmp_path / "mine.py", "--shrink-seconds", "300") == 1
    assert DOCUMENTED[part] in capsys.readouterr().out
    assert DOCUMENTED[part] in " ".join(page.split())


@pytest.mark.parametrize(
    "part",
    some_by_night(
        FAULTS,
        {f"cache:{name}" for name in ("Invents", "Loses", "Hides", "Hurries", "Silent", "Lists")}
        | {f"policy:{name}" for name in ("Unfair", "Strikes", "Holds", "Remembers")}
        | {"scheduler:Trips"},
    ),
)
def test_the_fault_of_a_part_is_told_as_that_in_at_most_three_requests(
    part: str, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explored(part, parts, "--shrink-seconds", "300") == 1
    told = capsys.readouterr()
    assert re.search(FAULTS[part], next(line for line in told.err.splitlines() if line.startswith("found, and saved")))
    assert re.search(FAULTS[part], next(line for line in told.out.splitlines() if line.startswith("schedule ")))
    assert len(load_schedule(parts.with_name("schedule.json")).workload.arrivals) <= 3


def test_what_a_part_raised_stands_with_its_own_lines(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, line in (("policy:Raises", ", line 18, in <lambda>"), ("scheduler:Trips", ", line 69, in settled")):
        assert explored(part, parts, "--shrink-seconds", "0") == 1
        assert f'parts.py"{line}' in capsys.readouterr().out


def test_a_schedule_is_replayed_from_any_folder_also_without_the_file_of_the_part(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explored("policy:Drops", parts) == 1
    monkeypatch.chdir(tmp_path.parent)
    saved = str(tmp_path / "schedule.json")
    for change, said in (
        (lambda: None, "left out row 0"),
        (lambda: parts.write_text("# mine\n" + PARTS), "has changed since"),
        (parts.unlink, "is not there any more"),
    ):
        change()
        from pawl.loops.policy import POLICIES

        monkeypatch.delitem(POLICIES, f"{parts}:Drops")
        main(["replay", saved])
        told = capsys.readouterr().out
        assert said in told
        assert "left out row 0" in told
    assert main(["replay", saved]) == 0


def test_every_feature_with_a_plain_value_can_be_fixed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--page-size", "4", "--eviction", "lfu", "--host-pages", "5", "--timeout-s", "0.05", "--step-s", "0.1"]
    assert main(["explore", "--seconds", "600", "--schedules", "40", "--seed", "2", "--workers", "2", *words]) == 0
    told = capsys.readouterr().out
    for feature in ("eviction lfu", "tiers", "time of a step", "deadline"):
        assert f"{feature} 1e+02" in told
    assert main(["explore", "--seconds", "600", "--schedules", "20", "--workers", "1", "--window", "3"]) == 0
    assert "window pages 1e+02" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--eviction", "nonsense"], "unknown eviction policy"),
        (["--policy", "random:Random"], "random:Random is no policy: it has no method `order(rows, waiting)`"),
        (["--num-pages", "none"], "Expected `int`"),
        (["--seconds", "inf"], "'inf' is no finite number"),
        (["--shrink-seconds", "nan"], "'nan' is no finite number"),
        (["--output", "."], "nothing can be saved as ."),
        (["--output", "nowhere/schedule.json"], "nothing can be saved as nowhere/schedule.json"),
    ],
)
def test_a_value_that_cannot_be_is_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["explore", "--seconds", "1", *words])
    except SystemExit as end:  # argparse's own
        status = int(end.code or 0)
    assert status == 2
    assert told in capsys.readouterr().err


class Forgetful:
    """Never offers whoever has waited longest."""

    name = "forgetful"

    def order(self, rows: list[int], waiting: object) -> list[int]:
        return rows[1:]


def test_a_class_can_stand_in_a_workload_of_hypothesis() -> None:
    @settings(
        max_examples=50,
        phases=(Phase.generate,),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(workload=workloads(policy=Forgetful), schedule=schedules())
    def served(workload: Workload, schedule: Drawn) -> None:
        check_schedule(workload, schedule)

    with pytest.raises(PartFailed, match=r"Forgetful .* left out row"):
        served()


def test_one_replica_gets_others_beside_it_where_there_may_be_more() -> None:
    scaling: dict[str, Any] = {"replicas": 1, "max_replicas": 3, "scale_at": 1, "scale_down_s": 0.05}
    outcome = explore_workload(Workload.random(2, **scaling), "random", 5, shrink=False, replayed=False)
    assert outcome.found is None
    assert outcome.reached["added replica"] > 0


@pytest.mark.parametrize("words", [("--host-pages", "8"), ("--storage-pages", "8"), ("--cache-core", "compiled")])
def test_what_is_drawn_goes_with_what_is_fixed(words: tuple[str, ...]) -> None:
    task = task_with(words, 0, 0.0)
    for seed in range(60):
        make_memory(workload_of(task, seed).shape.loop_config())
