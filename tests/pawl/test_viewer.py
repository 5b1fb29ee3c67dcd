"""The page that shows a run: self-contained, safe with any name a client gives, and alive in a real browser."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pawl.cli import main
from pawl.lifecycle.audit import Report, Verdict, audit
from pawl.lifecycle.export.timeline import Interval, PageSample, RequestLine, StepLine, Timeline, timeline
from pawl.lifecycle.records import PageCounts, Record, Submitted
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause, State
from pawl.viewer import page as viewer
from pawl.viewer.page import render, run_data
from tests.lifecycle.story import sound_run, without, write
from tests.loops.test_replay import record_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>document.title='owned'</script><!--"


def page_of(tmp_path: Path, records: list[Record]) -> str:
    return render(timeline(records), audit(write(tmp_path, records)))


SLOTS = 4


def crowd(count: int) -> tuple[Timeline, Report]:
    """A run of so many requests that wait for four slots, and the audit that found nothing wrong with it."""
    line = Timeline(end=float(count))
    free = [0.0] * SLOTS
    for request in range(1, count + 1):
        submitted = request / 5
        slot = min(range(SLOTS), key=free.__getitem__)
        admitted = max(submitted + 0.1, free[slot])
        first, ended = admitted + 0.5, admitted + 1.0 + request % 7
        free[slot] = ended
        step = StepLine(
            step=request, planned=admitted, ended=first, committed=True, num_segments=1, num_tokens=9, num_decoding=0
        )
        step.num_outputs = 1
        line.steps.append(step)
        line.pages.append(PageSample(first, PageCounts(60, 30, 10, 0, 0)))
        line.requests.append(
            RequestLine(
                request=request,
                rid=f"name-{request}",
                num_prompt=9,
                namespace="",
                submitted=submitted,
                sampling=SamplingParameters(),
                priority=0,
                intervals=[
                    Interval(State.QUEUED, submitted, admitted),
                    Interval(State.PREFILLING, admitted, first),
                    Interval(State.DECODING, first, ended),
                ],
                ended=ended,
                reached=State.FINISHED,
                cause=Cause.LENGTH,
                num_output=2,
                num_drawn=2,
                first_token=first,
                last_token=ended,
                largest_gap=ended - first,
                steps=[[request, request]],
            )
        )
    line.end = max(free)
    report = Report(
        path="",
        verdict=Verdict.PASS,
        findings=(),
        missing=(),
        damage=(),
        from_checkpoint=False,
        num_blocks=1,
        num_records=count,
        num_judged=count,
        records={},
        causes={},
        num_requests=count,
        num_tokens=count,
        open_requests=(),
        contained=(),
    )
    return line, report


def data_in(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="run">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


# ---- content ----


def test_the_page_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    page = page_of(tmp_path, record_run(3))
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|\bsrc=|<link|@import", page)
    assert "{{" not in page


def test_a_name_that_looks_like_a_script_stays_a_name(tmp_path: Path) -> None:
    records = [
        msgspec.structs.replace(record, rid=HOSTILE) if isinstance(record, Submitted) else record
        for record in record_run(3)
    ]
    page = page_of(tmp_path, records)
    assert page.count("<script") == 2
    assert {request["rid"] for request in data_in(page)["requests"]} == {HOSTILE}


def test_the_data_are_those_of_the_run(tmp_path: Path) -> None:
    story = sound_run()
    data = data_in(page_of(tmp_path, story.records))
    assert data["verdict"] == "PASS"
    assert len(data["requests"]) == len({r.request for r in story.records if isinstance(r, Submitted)})
    (lived,) = [one for one in data["requests"] if one["request"] == 1]
    assert lived["settings"]["max_new_tokens"] > 0
    assert lived["first"] is not None
    assert lived["steps"]
    broken = data_in(page_of(tmp_path / "broken", without(story, "admit 1")))
    assert broken["verdict"] == "VIOLATION"
    assert broken["violations"][0]["slice"]


def test_what_is_left_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "MAX_STEPS", 5)
    records = record_run(3)
    data = run_data(timeline(records), audit(write(tmp_path, records)))
    assert len(data["steps"]) == 5
    assert list(data["left_out"]) == ["steps"]


def test_a_template_word_in_a_name_is_not_filled_in(tmp_path: Path) -> None:
    records = [
        msgspec.structs.replace(record, rid="{{script}} {{data}}") if isinstance(record, Submitted) else record
        for record in record_run(3)
    ]
    page = page_of(tmp_path, records)
    assert {request["rid"] for request in data_in(page)["requests"]} == {"{{script}} {{data}}"}


def test_latencies_are_those_of_the_records(tmp_path: Path) -> None:
    line = timeline(sound_run().records)
    for one in line.requests:
        tokens = [step.ended for step in line.steps if any(first <= step.step <= last for first, last in one.steps)]
        if one.first_token is not None:
            assert one.first_token in tokens
            assert one.submitted < one.first_token <= (one.last_token or 0.0)
    data = run_data(line, audit(write(tmp_path, sound_run().records)))
    rows = {name: row for name, *row in data["latencies"]}
    firsts = [one["first"] - one["submitted"] for one in data["requests"] if one["first"] is not None]
    assert rows["first token"][0] == len(firsts)
    assert rows["first token"][-1] == max(firsts)


def test_the_slowest_and_the_broken_are_shown_however_old_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    line, report = crowd(500)
    slow = line.requests[3]
    slow.ended = slow.submitted + 1000.0
    monkeypatch.setattr(viewer, "MAX_REQUESTS", 50)
    monkeypatch.setattr(viewer, "MAX_SLOWEST", 5)
    shown = [one["request"] for one in run_data(line, report)["requests"]]
    assert len(shown) == 50
    assert shown == sorted(shown)
    assert {slow.request, 500} <= set(shown)


def test_waiting_and_running_are_counted_over_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    line, report = crowd(300)
    loads = run_data(line, report)["loads"]
    assert loads[-1][1:] == [0, 0]
    assert max(running for _, _, running in loads) == SLOTS
    monkeypatch.setattr(viewer, "MAX_LOADS", 50)
    fewer = run_data(line, report)["loads"]
    assert len(fewer) == 50
    assert max(waiting for _, waiting, _ in fewer) == max(waiting for _, waiting, _ in loads)


def test_show_writes_the_page_and_says_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "page.html"
    trace = write(tmp_path / "traces", sound_run().records)
    assert main(["trace", "show", str(trace), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"PASS: {output}\n"
    assert output.read_text().startswith("<!doctype html>")


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs Chromium and playwright (pip install playwright)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        made = tools.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield made
        made.close()


@contextmanager
def visited(browser: Any, path: Path) -> Iterator[Any]:
    """The page as a visitor sees it; anything the browser complains about is a failure."""
    tab = browser.new_page(viewport={"width": 1000, "height": 900})
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(path.as_uri())
    yield tab
    tab.close()
    assert complaints == []


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page of a run with a violation."""
    path = tmp_path / "page.html"
    path.write_text(page_of(tmp_path / "traces", without(sound_run(), "admit 1")))
    with visited(browser, path) as tab:
        yield tab


def painted(tab: Any, canvas: str) -> int:
    """Pixels of a canvas that are not empty."""
    script = """id => {
        const canvas = document.getElementById(id), pen = canvas.getContext("2d");
        return pen.getImageData(0, 0, canvas.width, canvas.height).data.filter((v, i) => i % 4 == 3 && v).length;
    }"""
    count: int = tab.evaluate(script, canvas)
    return count


def test_a_browser_shows_verdict_memory_steps_and_requests(opened: Any) -> None:
    assert opened.locator("#verdict").inner_text() == "VIOLATION"
    assert all(painted(opened, canvas) > 500 for canvas in ("memory", "steps", "requests"))
    assert "prefilling" in opened.locator("#legend").inner_text()


def test_a_click_on_a_request_tells_its_life(opened: Any) -> None:
    opened.locator("#requests").click(position={"x": 400, "y": 7})
    details = opened.locator("#details").inner_text()
    assert "prompt" in details
    assert "waited before it" in details
    assert "first token" in details


@pytest.mark.parametrize("count", [1_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_person_finds_the_slowest_request_and_whom_it_waited_for(browser: Any, tmp_path: Path, count: int) -> None:
    path = tmp_path / "page.html"
    path.write_text(render(*crowd(count)))
    with visited(browser, path) as tab:
        if count > viewer.MAX_REQUESTS:
            assert f"{count - viewer.MAX_REQUESTS} older requests are not shown" in tab.locator("#notes").inner_text()
        tab.locator("#sort").select_option("longest wait")
        tab.locator("#requests").click(position={"x": 600, "y": 7})
        details = tab.locator("#details").inner_text()
        assert f"up to {SLOTS} running" in details
        assert "behind" in details
        tab.locator("#details button").first.click()
        assert tab.locator("#details").inner_text() != details
        tab.mouse.move(700, 400)
        assert "running" in tab.locator("#cursor").inner_text()
        before = tab.locator("#range").inner_text()
        tab.locator("#load").hover()
        tab.mouse.wheel(0, -400)
        assert tab.locator("#range").inner_text() != before
        tab.locator("#whole").click()
        assert tab.locator("#range").inner_text() == before
        assert all(painted(tab, canvas) > 500 for canvas in ("axis", "load", "memory", "steps", "requests"))


def test_a_click_on_a_violation_goes_to_its_request_and_shows_the_records(opened: Any) -> None:
    opened.locator("#violations summary").click()
    opened.locator("#violations button").first.click()
    details = opened.locator("#details").inner_text()
    assert "request" in details
    assert "submitted in row" in details


def test_the_wheel_zooms_and_the_button_shows_the_whole_run_again(opened: Any) -> None:
    whole = opened.locator("#range").inner_text()
    opened.locator("#steps").hover(position={"x": 300, "y": 10})
    opened.mouse.wheel(0, -400)
    opened.wait_for_function("before => document.getElementById('range').textContent !== before", arg=whole)
    opened.locator("#whole").click()
    assert opened.locator("#range").inner_text() == whole


def test_finding_leaves_only_what_matches(opened: Any) -> None:
    before = painted(opened, "requests")
    opened.locator("#find").fill("client")
    assert painted(opened, "requests") < before
    opened.locator("#find").fill("nothing is called this")
    assert painted(opened, "requests") == 0


def test_a_hostile_name_does_nothing_in_a_browser(browser: Any, tmp_path: Path) -> None:
    records = [
        msgspec.structs.replace(record, rid=HOSTILE) if isinstance(record, Submitted) else record
        for record in record_run(3)
    ]
    path = tmp_path / "page.html"
    path.write_text(page_of(tmp_path / "traces", records))
    tab = browser.new_page()
    tab.goto(path.as_uri())
    assert tab.title() == "Pawl run"
    tab.close()
