"""Profiles of steps: when each begins and ends, which files there are, and what is left when one fails."""

from __future__ import annotations

import gzip
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pawl.gpu.profiler import ProfileOptions, Profiler, ProfileRefused, Stage, WrongState
from pawl.lifecycle.machines.profiling import Profiling
from pawl.lifecycle.step import StepBatch
from pawl.testing.profiles import SimulatedTracer, profile_at_rest

NONE = np.zeros(0, np.int32)


def batch(step: int, stage: Stage) -> StepBatch:
    one = np.ones(1, np.int32)
    chained = np.array([stage == "decode"])
    return StepBatch(step, one, one, one, one, chained, chained, NONE, NONE, NONE)


class Run:
    """A profiler, its steps, and the files that it would have written."""

    def __init__(self, failing: Sequence[int] = ()) -> None:
        self.asked = 0
        self.failing = failing
        """Which of the questions whether something fails are answered yes."""
        self.profiler = Profiler(lambda: SimulatedTracer(self._strikes), Path("folder"))
        self.step = 0

    def _strikes(self, place: str) -> bool:
        self.asked += 1
        return self.asked in self.failing

    def start(self, **options: Any) -> None:
        self.profiler.start(ProfileOptions(folder=Path("folder"), name="p", **options))

    def run(self, *stages: Stage) -> list[Profiling]:
        phases = []
        for stage in stages:
            self.step += 1
            with self.profiler.step(batch(self.step, stage)):
                phases.append(self.profiler.phase)
        assert profile_at_rest(self.profiler) is None
        return phases

    def files(self) -> list[str]:
        return [path.name for path in self.profiler._files]


IDLE, ARMED, ACTIVE = Profiling.IDLE, Profiling.ARMED, Profiling.ACTIVE


def test_a_profile_ends_by_itself_after_its_steps() -> None:
    run = Run()
    run.start(num_steps=2)
    assert run.run("prefill", "decode", "decode") == [ACTIVE, ACTIVE, IDLE]
    assert run.files() == ["p-TP-0.trace.json.gz"]


def test_a_profile_begins_with_its_first_step_and_goes_on_until_it_is_stopped() -> None:
    run = Run()
    run.start(start_step=3)
    assert run.run(*["decode"] * 5) == [ARMED, ARMED, ACTIVE, ACTIVE, ACTIVE]
    assert [path.name for path in run.profiler.stop()] == ["p-TP-0.trace.json.gz"]
    assert run.profiler.phase is IDLE


def test_steps_that_warm_up_are_not_recorded_and_come_before_each_repetition() -> None:
    run = Run()
    run.start(num_steps=1, warmup=2, repeat=2)
    assert run.run(*["decode"] * 7) == [ARMED, ARMED, ACTIVE, ARMED, ARMED, ACTIVE, IDLE]
    assert run.files() == ["p-TP-0-1.trace.json.gz", "p-TP-0-2.trace.json.gz"]


@pytest.mark.parametrize(
    ("stages", "steps", "names"),
    [
        (("prefill", "decode"), ["prefill", "decode", "decode", "decode"], ["prefill", "decode"]),
        (("prefill", "decode"), ["decode", "prefill", "decode"], ["decode", "prefill"]),
        (("decode",), ["prefill", "decode", "prefill"], ["decode"]),
        (("prefill",), ["decode", "prefill", "prefill", "prefill"], ["prefill"]),
    ],
)
def test_by_stage_there_is_a_file_of_each_and_a_step_of_the_other_ends_it(
    stages: tuple[Stage, ...], steps: list[Stage], names: list[str]
) -> None:
    run = Run()
    run.start(num_steps=2, stages=stages)
    run.run(*steps)
    if run.profiler.phase is not IDLE:
        run.profiler.stop()
    assert run.files() == [f"p-TP-0-{name}.trace.json.gz" for name in names]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_profile_that_cannot_be_begun_or_written_leaves_the_profiler_idle_and_says_so(failing: int) -> None:
    run = Run([failing])
    run.start(num_steps=1)
    run.run("decode", "decode")
    assert run.profiler.phase is IDLE
    assert "No space left" in run.profiler.trouble or "OSError" in run.profiler.trouble
    with pytest.raises(WrongState, match="the last one failed: OSError"):
        run.profiler.stop()
    run.start(num_steps=1)
    run.run("decode")
    assert run.files() == ["p-TP-0.trace.json.gz"]


def test_a_profile_that_cannot_be_begun_after_its_warm_up_is_abandoned() -> None:
    class Refusing(SimulatedTracer):
        def begin(self) -> None:
            raise RuntimeError("no trace")

    run = Run()
    tracer = Refusing(lambda _: False)
    run.profiler = Profiler(lambda: tracer, Path("folder"))
    run.start(num_steps=1)
    run.run("decode")
    assert (run.profiler.phase, tracer.running) == (IDLE, False)


def test_a_stop_that_cannot_write_says_why() -> None:
    run = Run([2])
    run.start()
    run.run("decode")
    with pytest.raises(ProfileRefused, match="the disk is full"):
        run.profiler.stop()
    assert run.profiler.phase is IDLE


def test_a_second_start_and_a_stop_of_nothing_are_refused_and_change_nothing() -> None:
    run = Run()
    with pytest.raises(WrongState):
        run.profiler.stop()
    run.start(warmup=2)
    run.run("decode")
    with pytest.raises(WrongState):
        run.start()
    assert run.profiler.stop() == []
    assert (run.profiler.phase, profile_at_rest(run.profiler)) == (IDLE, None)


def test_a_step_that_fails_is_no_end_of_a_profile() -> None:
    run = Run()
    run.start(num_steps=1)
    with pytest.raises(RuntimeError), run.profiler.step(batch(1, "decode")):
        raise RuntimeError
    run.run("decode")
    assert run.profiler.phase is IDLE


# ---- with PyTorch ----


def recorded(tmp_path: Path, **options: Any) -> tuple[Path, list[dict[str, Any]]]:
    """A file of one matrix product in one step, and its events."""
    torch = pytest.importorskip("torch")
    from pawl.gpu.torch_tracer import TorchTracer

    profiler = Profiler(TorchTracer, tmp_path)
    profiler.start(ProfileOptions(folder=tmp_path / "new" / "folder", name="p", num_steps=1, **options))
    with profiler.step(batch(7, "decode")):
        torch.ones(4, 3) @ torch.ones(3, 5)
    (path,) = profiler._files
    return path, json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def test_a_file_is_a_chrome_trace_of_the_named_step_for_its_owner_alone(tmp_path: Path) -> None:
    path, events = recorded(tmp_path)
    assert {"step 7: decode", "aten::mm"} <= {event.get("name") for event in events}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_shapes_are_recorded_where_they_are_asked_for(tmp_path: Path) -> None:
    _, events = recorded(tmp_path, record_shapes=True, activities=("CPU", "MEM"))
    (product,) = [event for event in events if event.get("name") == "aten::mm"]
    assert product["args"]["Input Dims"] == [[4, 3], [3, 5]]
    assert any(event.get("name") == "[memory]" for event in events)


def test_steps_that_warm_up_are_not_in_the_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from pawl.gpu.torch_tracer import TorchTracer

    profiler = Profiler(TorchTracer, tmp_path)
    profiler.start(ProfileOptions(folder=tmp_path, name="p", num_steps=1, warmup=1))
    for number in (7, 8):
        with profiler.step(batch(number, "decode")), torch.profiler.record_function(f"inside {number}"):
            torch.ones(4, 3) @ torch.ones(3, 5)
    (path,) = profiler._files
    names = {event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
    assert {"step 8: decode", "inside 8"} <= names
    assert "inside 7" not in names


def test_a_profile_does_not_load_what_compiles_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    asked: list[str] = []

    def spied(name: str) -> Any:
        asked.append(name)
        raise AttributeError(name)

    for name in ("_inductor", "_dynamo"):
        monkeypatch.delattr(torch, name, raising=False)
    monkeypatch.setattr(torch, "__getattr__", spied)
    recorded(tmp_path)
    assert not {"_inductor", "_dynamo"} & set(asked)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ProfileRefused, match="file is no folder that this server may write"):
        recorded(file)


def test_what_is_left_of_another_file_is_not_written_into(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from pawl.gpu.torch_tracer import TorchTracer

    left = tmp_path / "p.unfinished"
    left.touch()
    left.chmod(0o644)
    other = tmp_path / "other"
    other.hardlink_to(left)
    TorchTracer().save(tmp_path / "p", b"data")
    assert stat.S_IMODE((tmp_path / "p").stat().st_mode) == 0o600
    assert other.read_bytes() == b""


def test_a_folder_whose_name_the_system_does_not_take_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(ProfileRefused, match="output_dir: File name too long"):
        recorded(tmp_path / ("x" * 300))


class Library:
    """In the place of PyTorch's, which is one for the process."""

    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_one_of_several_replicas_of_a_process_is_profiled_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_tracer = pytest.importorskip("pawl.gpu.torch_tracer")
    monkeypatch.setattr(torch_tracer, "profile", Library)
    options = ProfileOptions(folder=Path(), name="p", activities=("CPU",))
    first, second = torch_tracer.TorchTracer(), torch_tracer.TorchTracer()
    first.prepare(options)
    for _ in range(2):
        with pytest.raises(ProfileRefused, match="another replica"):
            second.prepare(options)
        second.abandon()
    first.abandon()
    second.prepare(options)
    second.abandon()
