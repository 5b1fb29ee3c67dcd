"""Schemathesis reads our description and asks a served ghost for all that it promises, and for what it does not.

It brings two dozen packages with it, so it is no part of the tests' own: `pip install -e '.[fuzz]'`, or it is skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from pawl.lifecycle.audit import Verdict, audit
from tests.pawl.ghost_server import ghost_parts, ghost_server
from tests.pawl.test_http_crowd import tight

pytestmark = pytest.mark.slow

EXAMPLES = 50
"""Of each operation."""


def test_nothing_that_the_description_lets_through_fails_in_the_server(tmp_path: Path) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    parts = ghost_parts(tight(200), tmp_path)
    failures: list[str] = []
    asked: set[str] = set()
    with ghost_server(parts) as (host, port):
        base = f"http://{host}:{port}"
        for operation in schemathesis.openapi.from_url(f"{base}/openapi.json").get_all_operations():
            one = operation.ok()

            @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
            @given(case=one.as_strategy())
            def ask(case: object) -> None:
                response = case.call(base_url=base, timeout=60)  # type: ignore[attr-defined]
                asked.add(one.label)  # noqa: B023  # called before the next one is bound
                if response.status_code >= 500:
                    failures.append(f"{one.label}: {response.status_code} {response.text[:200]}")  # noqa: B023

            ask()
    assert "POST /v1/completions" in asked
    assert failures == []
    assert parts.trace_path is not None
    report = audit(parts.trace_path)
    assert report.verdict is Verdict.PASS, report.text()
