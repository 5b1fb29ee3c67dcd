"""A minute under every attack that `benchmarks.attacks` has: good clients notice nothing but time."""

from __future__ import annotations

import pytest

from benchmarks.attack_shots import SHOTS
from benchmarks.attack_sieges import SIEGES
from benchmarks.attacks import Report, show, soak
from pawl.lifecycle.audit import Verdict

SECONDS = 60.0
MEMORY_MB = 768
"""What a ghost's server may have held at the most: the bodies of all attackers at once, and not their products."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    report = soak(tmp_path_factory.mktemp("soak"), SECONDS)
    print("\n".join(show(report)))
    return report


def test_good_clients_get_exactly_their_tokens_through_all_of_it(report: Report) -> None:
    assert report.errors == []
    assert report.served_alone > 0
    assert report.served > 0


def test_the_server_lives_ends_in_order_and_holds_nothing_back(report: Report) -> None:
    assert report.exit_status == 0
    assert report.unrest == []
    assert report.peak_mb < MEMORY_MB


def test_the_log_shows_no_traceback_no_key_and_no_prompt(report: Report) -> None:
    assert report.tracebacks == []
    assert report.secrets == []


def test_no_request_fails_in_the_server(report: Report) -> None:
    assert [name for name in report.shots if name.endswith(": 500")] == []
    assert report.contained == 0


def test_foreign_pages_and_wrong_keys_get_nothing(report: Report) -> None:
    assert [name for name in report.shots if "a foreign page got" in name] == []


def test_the_trace_of_the_whole_is_judged_and_passes(report: Report) -> None:
    assert report.verdict is Verdict.PASS, report.audit


def test_most_attacks_were_made(report: Report) -> None:
    made = {name.partition(":")[0] for name in report.shots}
    assert len(made & {*SHOTS, *SIEGES}) > (len(SHOTS) + len(SIEGES)) / 2
