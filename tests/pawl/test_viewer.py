"""The page that shows a run: self-contained, safe with any name a client gives, and alive in a real browser."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pawl.cli import main
from pawl.lifecycle.audit import audit
from pawl.lifecycle.export.timeline import timeline
from pawl.lifecycle.records import Record, Submitted
from pawl.viewer import page as viewer
from pawl.viewer.page import render, run_data
from tests.lifecycle.story import sound_run, without, write
from tests.loops.test_replay import record_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>document.title='owned'</script><!--"


def page_of(tmp_path: Path, records: list[Record]) -> str:
    return render(timeline(records), audit(write(tmp_path, records)))


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
    broken = data_in(page_of(tmp_path / "broken", without(story, "admit 1")))
    assert broken["verdict"] == "VIOLATION"
    assert broken["violations"][0]["slice"]


def test_what_is_left_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "MAX_STEPS", 5)
    records = record_run(3)
    data = run_data(timeline(records), audit(write(tmp_path, records)))
    assert len(data["steps"]) == 5
    assert list(data["left_out"]) == ["steps"]


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


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page of a run with a violation, as a visitor sees it; anything the browser complains about is a failure."""
    records = without(sound_run(), "admit 1")
    path = tmp_path / "page.html"
    path.write_text(page_of(tmp_path / "traces", records))
    tab = browser.new_page(viewport={"width": 1000, "height": 900})
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(path.as_uri())
    yield tab
    tab.close()
    assert complaints == []


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
    assert "prompt" in opened.locator("#details").inner_text()


def test_a_click_on_a_violation_goes_to_its_request_and_shows_the_records(opened: Any) -> None:
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
