"""Defects of mini-sglang as it is, each with a workload in which it shows. See docs/subjects.md.

    python -m tests.peers.today FOLDER

writes a script of plain calls for each, where mini-sglang is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from pawl.testing.subject.exploring import Found, explore_subject
from pawl.testing.subject.port import Settings
from pawl.testing.subject.registry import load_subject
from pawl.testing.subject.telling import script_of
from pawl.testing.subject.workload import Arrival, Workload

SEEDS = 200
"""Of strategies, by turns. Each ends with its first failure, which may be another one."""


class Today(NamedTuple):
    """One defect."""

    name: str
    shows: tuple[str, ...]
    """Properties that fail, one or the other."""
    workload: Workload

    def found(self) -> Found | None:
        """A counterexample; None: it does not show."""
        kind = load_subject("mini-sglang")
        for seed in range(SEEDS):
            strategy = ("fair", "random", "pct", "pos")[seed % 4]
            _, found = explore_subject(kind, self.workload, strategy, name="mini-sglang", seed=seed)
            if found is not None and found.violated in self.shows:
                return found
        return None


def _settings(num_pages: int, page_size: int, in_flight: int, *, prefix_caching: bool) -> Settings:
    return Settings(
        num_pages=num_pages,
        page_size=page_size,
        max_running=5,
        max_step_tokens=17,
        max_context=10,
        in_flight=in_flight,
        prefix_caching=prefix_caching,
        chunked_prefill=True,
    )


TODAY = (
    Today(
        "ends_a_token_early",
        ("ends_once",),
        Workload(
            settings=_settings(2, 2, 2, prefix_caching=False), arrivals=(Arrival(prompt=(98,), max_new_tokens=2),)
        ),
    ),
    Today(
        "goes_on_with_pages_that_are_free",
        ("conservation",),
        Workload(
            settings=_settings(3, 1, 1, prefix_caching=True),
            arrivals=(Arrival(prompt=(99,)), Arrival(prompt=(99,), max_new_tokens=2)),
        ),
    ),
    Today(
        "abort_while_its_prefill_is_in_flight",
        ("conservation", "page_content", "single_owner", "raises_nothing"),
        Workload(
            settings=_settings(4, 2, 2, prefix_caching=True),
            arrivals=(Arrival(prompt=(97, 97), max_new_tokens=2, leaves_after=0), Arrival(prompt=(98, 99, 99))),
        ),
    ),
    Today(
        "admits_tokens_not_pages",
        ("raises_nothing",),
        Workload(
            settings=_settings(4, 4, 1, prefix_caching=False),
            arrivals=(
                Arrival(prompt=(99, 98, 97, 99, 99, 97), max_new_tokens=4),
                Arrival(prompt=(99, 98), max_new_tokens=4),
            ),
        ),
    ),
)


def main(folder: str) -> None:
    for each in TODAY:
        found = each.found()
        print(f"{each.name}: {str(found).splitlines()[0] if found else 'does not show'}", flush=True)
        script = found and script_of(found.kind, found.run().subject.calls, str(found.error))
        if script:
            Path(folder, f"{each.name}.py").write_text(script)


if __name__ == "__main__":
    main(sys.argv[1])
