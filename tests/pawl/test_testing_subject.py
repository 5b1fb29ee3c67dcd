"""Subjects: what is right holds, and each property is shown by something that is wrong, as that and as little."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from itertools import count, repeat
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings

from pawl.actors.simulation.choice import Choices
from pawl.actors.simulation.strategies.drawn import Drawn
from pawl.cli import main
from pawl.testing import PropertyFailed, schedules
from pawl.testing.subject import Accounting, Offers, Output, Refused, Request, Segment, Settings, Step, Subject, Tokens
from pawl.testing.subject.contract import SubjectContract
from pawl.testing.subject.exploring import Found, explore_subject, load_found, replay_found, shrunk
from pawl.testing.subject.hypothesis import check_subject, subject_workloads
from pawl.testing.subject.port import Call, Made, Submit
from pawl.testing.subject.properties import NAMES
from pawl.testing.subject.registry import know_subject, load_subject
from pawl.testing.subject.search import STRATEGIES, report, search
from pawl.testing.subject.telling import script_of
from pawl.testing.subject.watchdog import Hung, limited
from pawl.testing.subject.workload import Arrival, Workload, smaller
from tests.pawl.subject_canaries import CANARIES, Canary
from tests.pawl.subjects import Everything

SOURCE = Path(__file__).with_name("subjects.py")
HANGING = "a call does not return"
"""Each time, seconds pass before it counts as that."""
SHRUNK = ("an abort frees nothing", "newest first")
"""Those that the default tier makes smaller."""


def edited(old: str, new: str) -> type[Subject]:
    """The subject with one edit."""
    text = SOURCE.read_text()
    assert text.count(old) == 1, f"{old!r} stands there {text.count(old)} times"
    text = text.replace(old, new).replace("Output, Request,", "Output, Refused, Request,")
    module = types.ModuleType("subjects_edited")
    sys.modules[module.__name__] = module
    exec(compile(text, "subjects_edited.py", "exec"), module.__dict__)
    kind: type[Subject] = module.Everything
    return kind


def first_found(kind: type[Subject], most: int = 300) -> Found:
    """In so many workloads, ten schedules of each."""
    for seed in range(most):
        workload = Workload.random(seed, kind.offers)
        _, found = explore_subject(kind, workload, STRATEGIES[seed % len(STRATEGIES)], 10, name="mine", seed=seed)
        if found is not None:
            return found
    raise AssertionError(f"nothing is found in {most} workloads")


def is_shown(canary: Canary, error: Exception) -> bool:
    return str(error).startswith(canary.property) and re.search(canary.told, str(error)) is not None


def slow(*names: str) -> list[object]:
    """All canaries, these in the nightly tier."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in names)) for name in CANARIES]


@pytest.mark.parametrize("name", slow(HANGING))
def test_what_is_wrong_is_told_as_that(name: str) -> None:
    canary = CANARIES[name]
    assert is_shown(canary, first_found(edited(canary.old, canary.new)).failure.error)


@pytest.mark.parametrize("name", slow(*CANARIES.keys() - SHRUNK))
def test_what_is_wrong_is_shown_by_three_requests_at_most(name: str) -> None:
    canary = CANARIES[name]
    found = shrunk(first_found(edited(canary.old, canary.new)))
    assert len(found.workload.arrivals) <= 3
    assert is_shown(canary, found.error)


def test_every_property_has_a_canary() -> None:
    assert {canary.property for canary in CANARIES.values()} == set(NAMES) - {"deterministic", "records"}


def test_a_subject_that_is_right_holds_in_all_that_it_offers() -> None:
    done = search(Everything, "everything", seed=0, schedules=300)
    assert not done.violations, done.found
    events = {"abort", "abort in flight", "cached prefix", "chunk", "flush", "flush refused", "preemption"}
    assert set(done.seen.reached) == events | {"several run", "steps lost", "steps overlap"}
    assert done.as_dict()["not_judged"] == {}
    assert "not offered" not in "\n".join(report(done, 1.0))


class Moody(Everything):
    """What comes of its calls depends on how many there were before this run."""

    made: ClassVar[int] = 0

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        Moody.made += 1
        if Moody.made % 2:
            self.free.reverse()


def test_a_subject_that_decides_by_more_than_its_calls_is_not_deterministic() -> None:
    done = search(Moody, "moody", seed=0, schedules=300)
    assert done.violations["deterministic"] == 1
    assert "came out otherwise" in "\n".join(report(done, 1.0))


class Again(Everything):
    """It computes its newest position but one again: no harm, and no reason."""

    def segment(self, live: object, count: int) -> Segment:
        segment = super().segment(live, count)  # type: ignore[arg-type]
        back = int(segment.start > 0 and self.settings.page_size == 1 and not self.settings.prefix_caching)
        return Segment(segment.request, segment.start - back, count + back, segment.pages, segment.samples)


def test_what_only_records_show_is_told_by_the_property_of_records_and_counted() -> None:
    done = search(Again, "again", seed=0, schedules=60, shrink_seconds=0)
    assert "stream_positions" in done.violations
    lines = report(done, 1.0)
    assert any(line.split()[:2] == ["records", "FAILS"] for line in lines)
    assert any(line.split()[:2] == ["stream_positions", "FAILS"] for line in lines)


class Silent(Everything):
    """It tells nothing of its pages."""

    def pages(self) -> Accounting | None:
        return None


def test_who_tells_nothing_of_pages_is_judged_by_the_rest() -> None:
    done = search(Silent, "silent", seed=0, schedules=100)
    unjudged = {"conservation", "single_owner", "reference_counts", "own_pages", "nothing_at_rest"}
    assert not done.violations
    assert set(done.as_dict()["not_judged"]) == unjudged
    assert sum("not judged: it does not tell" in line for line in report(done, 1.0)) == len(unjudged)


def test_a_stale_share_is_seen_by_the_ghost_alone() -> None:
    canary = CANARIES["a page is found that was evicted"]
    kind = edited(canary.old, canary.new)
    kind.pages = Silent.pages  # type: ignore[method-assign]
    found = shrunk(first_found(kind))
    assert found.violated == "page_content"
    assert "which holds" in str(found.error)
    assert len(found.workload.arrivals) <= 3


class Nothing(Subject):
    """It cannot even be made."""

    def __init__(self, settings: Settings) -> None:
        raise SystemExit("no")

    def submit(self, request: Request) -> None: ...

    def abort(self, request: int) -> None: ...

    def schedule(self) -> Step | None: ...

    def apply(self, step: Step, tokens: Tokens) -> list[Output]:
        return []


def test_a_subject_that_ends_the_program_ends_its_run() -> None:
    assert "__init__ raised SystemExit: no" in str(first_found(Nothing).failure.error)


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


def raising(error: Exception) -> object:
    raise error


SEGMENT = Segment(1, 0, 1, [100])
NONSENSE: dict[str, tuple[str, Callable[[], object], str]] = {
    "segments without end": ("schedule", lambda: Step(repeat(SEGMENT)), "well_formed: Step.segments has more than"),  # type: ignore[arg-type]
    "pages without end": ("schedule", lambda: Step([Segment(1, 0, 1, count())]), "Segment.pages has more than 65,536"),  # type: ignore[arg-type]
    "free pages without end": ("pages", lambda: Accounting(free=range(1 << 60), owned={}), "Accounting.free has more"),
    "a huge number": ("schedule", lambda: Step([Segment(1, 10**5000, 1, [0])]), "start is a number of 16610 bits"),
    "a list with a huge number": ("schedule", lambda: [10**5000], "schedule returned a list, which is no Step"),
    "a word for a flag": ("schedule", lambda: Step([Segment(1, 0, 1, [0], "yes")]), "Segment.samples is 'yes', which"),  # type: ignore[arg-type]
    "a list for an end": ("apply", lambda: [Output(1, [], [])], "apply returned the end [], which is none of"),  # type: ignore[arg-type]
    "nothing for no outputs": ("apply", lambda: None, "what apply returned is None, which is no sequence"),
    "a refusal of no request": ("schedule", lambda: raising(Refused("no")), "schedule raised Refused: no"),
    "an error that says nothing": (
        "schedule",
        lambda: raising(Mute()),
        "schedule raised Mute: its __str__ raises, too",
    ),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_told_as_what_it_is(name: str) -> None:
    verb, make, words = NONSENSE[name]
    kind = type("Nonsense", (Everything,), {verb: lambda self, *given: make()})
    _, found = explore_subject(kind, Workload(arrivals=(Arrival(prompt=(97,)),)), "fair", 1)
    assert found is not None
    assert words in str(found.error).splitlines()[0]


class Unwritten(Everything):
    @classmethod
    def script_of(cls, call: object) -> str:
        return "pass" if "Made" in str(call) else None  # type: ignore[return-value]


def test_a_script_that_cannot_be_written_is_said_to_be_so() -> None:
    with pytest.raises(ValueError, match=r"script_of\(Submit\(.*AttributeError"):
        script_of(Unwritten, calls_of_a_run(), "it fails")


class Written(Everything):
    @classmethod
    def script_of(cls, call: object) -> str:
        return "pass"


@pytest.mark.parametrize("error", [r"a path C:\new\x", 'three quotes """ here', 'a quote at the end "', "two\nlines"])
def test_a_script_is_a_program_whatever_the_fault_says(error: str) -> None:
    script = script_of(Written, calls_of_a_run(), error)
    assert script is not None
    compile(script, "script.py", "exec", flags=0)


def calls_of_a_run() -> list[tuple[Call, str]]:
    return [(Made(Settings()), ""), (Submit(Request(number=1, prompt=(97,), max_new_tokens=1)), "")]


def turns_in_circles() -> None:
    with limited(0.02):
        while True:
            pass


def test_a_call_that_turns_in_circles_is_ended() -> None:
    with pytest.raises(Hung):
        turns_in_circles()


def test_smaller_workloads_ask_less_and_fit() -> None:
    for seed in range(50):
        workload = Workload.random(seed, Everything.offers)
        for less in smaller(workload, Everything.offers):
            assert less != workload
            assert max(map(less.pages_of, less.arrivals)) <= less.settings.num_pages


def test_a_counterexample_is_saved_replayed_and_shown_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = CANARIES["an abort frees nothing"]
    text = SOURCE.read_text()
    (tmp_path / "mine.py").write_text(text.replace(canary.old, canary.new))
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = ["--seconds", "600", "--schedules", "100", "--seed", "1", "-o", str(tmp_path / "found.json"), "--json"]
    assert main(["explore", "--subject", f"{tmp_path / 'mine.py'}:Everything", *words]) == 1
    saved = tmp_path / "found-conservation.json"
    told = capsys.readouterr()
    assert '"conservation": "conservation, request' in told.out
    assert f"found, and saved to {saved}: conservation" in told.err
    assert main(["replay", str(saved)]) == 0
    assert "is lost: not free" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "mine.py").unlink()
    found = load_found(saved)
    assert found is not None
    assert isinstance(replay_found(found)[1], PropertyFailed)  # from the source that was kept
    (tmp_path / "mine.py").write_text(text)
    assert main(["replay", str(saved)]) == 1
    assert "no property failed" in capsys.readouterr().out
    Choices().save(tmp_path / "other.json")
    assert load_found(tmp_path / "other.json") is None


class Nowhere(Everything):
    offers = Offers(page_sizes=())


class Backwards(Everything):
    offers = Offers(in_flight=(-1,))


class OneWay(Everything):
    offers = Offers(prefix_caching=True)  # type: ignore[arg-type]


class Heir(Subject):
    """It has from Subject what it should do itself."""

    def submit(self, request: Request) -> None: ...

    def schedule(self) -> Step | None: ...


class Deaf:
    offers = Offers()
    submit = schedule = apply = pages = Everything.submit


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--subject", "nowhere.py:Mine"], "nowhere.py:Mine: "),
        (["--subject", "mine"], "'mine' is none of"),
        (["--subject", "json:JSONDecoder"], "is no subject"),
        (["--subject", "tests.pawl.test_testing_subject:Nowhere"], "its offers: Expected `array` of length >= 1"),
        (["--subject", "tests.pawl.test_testing_subject:Backwards"], "Expected `int` >= 1 - at `$.in_flight[0]`"),
        (
            ["--subject", "tests.pawl.test_testing_subject:OneWay"],
            "Expected `array`, got `bool` - at `$.prefix_caching",
        ),
        (["--subject", "tests.pawl.test_testing_subject:Heir"], "has no method abort of its own"),
        (["--subject", "tests.pawl.test_testing_subject:Deaf"], "has no method abort"),
        (["--subject", "json:JSONDecoder", "--policy", "lpm"], "--policy: not with --subject"),
        (["--subject", "json:JSONDecoder", "--page-size", "2", "--workers", "2"], "--page-size, --workers: not with"),
    ],
)
def test_what_cannot_be_explored_is_refused_in_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert len(error.splitlines()) == 1


def test_small_workloads_are_run_in_every_order() -> None:
    workload = Workload.random(3, Everything.offers, max_requests=1)
    result, found = explore_subject(Everything, workload, "exhaustive", 5000)
    assert found is None
    assert result.exhausted
    assert result.distinct == result.schedules > 1


@pytest.mark.parametrize(
    ("text", "told"), [("raise SystemExit(0)", "SystemExit: 0"), ("raise ValueError('a\\nb')", "ValueError: a b")]
)
def test_a_module_that_cannot_be_imported_is_refused_in_one_line(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "ends.py").write_text(text)
    with pytest.raises(ValueError, match=rf"^.*ends.py:Mine: {told}$"):
        load_subject(f"{tmp_path / 'ends.py'}:Mine")


def test_what_is_no_subject_is_refused_by_the_contract_and_by_hypothesis() -> None:
    for refuse in (know_subject, subject_workloads):
        with pytest.raises(ValueError, match="Heir has no method abort"):
            refuse(Heir)


def test_a_class_that_stands_in_a_module_is_loaded() -> None:
    assert load_subject("tests.pawl.subjects:Everything").__name__ == "Everything"


@pytest.mark.pawl(schedules=2)
class TestEverything(SubjectContract):
    subject = Everything
    num_workloads = 3


@settings(max_examples=20, deadline=None)
@given(workload=subject_workloads(Everything), schedule=schedules())
def test_hypothesis_draws_workloads_and_schedules(workload: Workload, schedule: Drawn) -> None:
    check_subject(Everything, workload, schedule)
