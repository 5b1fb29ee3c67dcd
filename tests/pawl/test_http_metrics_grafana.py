"""The dashboard and the alerts in docs/grafana/ ask for what a server has. With Prometheus on PATH: it says so, too."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pawl.build.ghost import load_ghost
from pawl.config import build_config
from tests.pawl.ghost_server import ghost_server
from tests.pawl.reading import labels_of

FOLDER = Path(__file__).parents[2] / "docs" / "grafana"
DASHBOARD = json.loads((FOLDER / "pawl.json").read_text())
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())
PANELS = DASHBOARD["panels"]
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
NO_PROMETHEUS = "Prometheus is not on PATH (Debian has it: apt install prometheus)"
PATIENCE_S = 60.0
OURS = re.compile(r"\b((?:pawl|gen_ai|process)_\w+)(?:\{([^}]*)\})?")
"""A metric of ours in an expression, and what is asked of its labels."""
BY = re.compile(r"\bby \(([^)]*)\)")
ADDED = {"instance", "job"}
"""Labels that Prometheus adds."""


def expressions() -> list[str]:
    panels = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return panels + [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def ghost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = {"model": "ghost", "trace_dir": str(tmp_path_factory.mktemp("trace"))}
    with (
        ghost_server(load_ghost(build_config(settings)), **settings) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60.0, verify=False) as client,
    ):
        yield client


def load(client: httpx.Client) -> None:
    body = {"text": "hello again, " * 20, "sampling_params": {"max_new_tokens": 20, "ignore_eos": True}}
    assert client.post("/generate", json=body).status_code == 200


def test_every_metric_that_they_ask_for_is_there_with_its_labels(ghost: httpx.Client) -> None:
    load(ghost)
    served = labels_of(ghost.get("/metrics").text)
    asked = [match for expression in expressions() for match in OURS.finditer(expression)]
    assert len(asked) > 40
    for metric, matchers in (match.groups() for match in asked):
        assert metric in served, metric
        for name, is_pattern, value in re.findall(r'(\w+)=(~?)"([^"]*)"', matchers or ""):
            values = served[metric].get(name, set())
            matches = [each for each in values if re.fullmatch(value if is_pattern else re.escape(value), each)]
            assert matches or name in ADDED, f"{metric} has no {name} like {value}"


def test_what_they_group_by_are_labels_of_what_they_group(ghost: httpx.Client) -> None:
    served = labels_of(ghost.get("/metrics").text)
    for expression in expressions():
        grouped = {name.strip() for names in BY.findall(expression) for name in names.split(",")}
        known = {label for match in OURS.finditer(expression) for label in served[match[1]]}
        assert grouped <= known | ADDED, expression


def test_the_dashboard_can_be_imported_as_it_is() -> None:
    """No data source of one installation, every panel with a place of its own, and marks that are told apart."""
    variables = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource": "datasource", "instance": "query"}
    assert "__inputs" not in DASHBOARD
    assert DASHBOARD["schemaVersion"] >= 36
    assert [panel["id"] for panel in PANELS] == list(range(1, len(PANELS) + 1))
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    source, taken = {"type": "prometheus", "uid": "${datasource}"}, set[tuple[int, int]]()
    for panel in PANELS:
        assert panel["type"] in ("timeseries", "stat")
        assert panel["description"]
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        marks = [target["refId"] for target in panel["targets"]]
        assert len(set(marks)) == len(marks) > 0
        for holder in (panel, *panel["targets"]):
            assert holder["datasource"] == source
        used = {name for target in panel["targets"] for name in re.findall(r"\$\{?(\w+)", target["expr"])}
        assert used <= {"instance", "__rate_interval"}


@pytest.mark.skipif(PROMTOOL is None, reason=NO_PROMETHEUS)
def test_alerts_fire_for_what_they_are_named_after_and_not_for_a_server_that_is_well() -> None:
    assert PROMTOOL is not None
    rules = Path(__file__).with_name("alerts.yml")
    told = subprocess.run([PROMTOOL, "test", "rules", str(rules)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


# ---- a real Prometheus ----


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """One that reads `target` every second, with our alerts; stopped when the block ends."""
    assert PROMETHEUS is not None
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FOLDER / "alerts.yml")],
        "scrape_configs": [{"job_name": "pawl", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    files = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([PROMETHEUS, *files, f"--web.listen-address={address}"], stderr=log, stdout=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=PATIENCE_S, verify=False) as client:
            until = time.monotonic() + PATIENCE_S
            while not ready(client):
                running = process.poll() is None
                assert running, (folder / "log").read_text()
                assert time.monotonic() < until, (folder / "log").read_text()
            yield client
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def ready(client: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return client.get("/-/ready").status_code == 200
    return False


def found(client: httpx.Client, expression: str) -> list[float]:
    """The numbers that an expression has now."""
    reply = client.get("/api/v1/query", params={"query": expression}).json()
    assert reply["status"] == "success", reply
    values = [float(sample["value"][1]) for sample in reply["data"]["result"]]
    return [value for value in values if value == value]


def in_time(expression: str) -> str:
    """As Grafana sends it."""
    return expression.replace("$instance", ".*").replace("$__rate_interval", "10s")


@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason=NO_PROMETHEUS)
def test_every_panel_has_data_in_a_real_prometheus_and_no_alert_fires(ghost: httpx.Client, tmp_path: Path) -> None:
    with prometheus(tmp_path, ghost.base_url.netloc.decode()) as client:
        until = time.monotonic() + PATIENCE_S
        scraped: list[Any] = []
        while len(scraped) < 1 or scraped[0] < 5:
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            load(ghost)
            scraped = found(client, "count_over_time(pawl_requests_open[1m])")
        empty = {
            f"{panel['title']}: {target['expr']}"
            for panel in PANELS
            for target in panel["targets"]
            if not found(client, in_time(target["expr"]))
        }
        assert empty == set()
        rules = client.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
        assert len(rules) == len(ALERTS["groups"][0]["rules"])
        assert {rule["name"]: (rule["health"], rule["state"]) for rule in rules} == {
            rule["alert"]: ("ok", "inactive") for rule in ALERTS["groups"][0]["rules"]
        }
        servers = client.get("/api/v1/label/instance/values", params={"match[]": "pawl_info"}).json()["data"]
        assert servers == [ghost.base_url.netloc.decode()]
