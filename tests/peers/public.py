"""Defects of vLLM's v1 scheduler that others have reported, found again in the releases that had them.

    python -m tests.peers.public

says of the release that is installed what it shows. docs/subjects.md says how an old release is had.
"""

from __future__ import annotations

from typing import NamedTuple

from pawl.testing.subject.exploring import explore_subject
from pawl.testing.subject.port import Settings
from pawl.testing.subject.registry import load_subject
from pawl.testing.subject.workload import Arrival, Workload

SCHEDULES = 400
"""Under which a defect is looked for, in turns of two strategies."""


class Public(NamedTuple):
    """One defect, and a workload in which it shows."""

    name: str
    reported: str
    """Issues of vllm-project/vllm, and the change that repaired it."""
    what: str
    subject: str
    workload: Workload
    shows: tuple[str, ...]
    """Properties that fail, one or the other."""
    in_releases: tuple[str, str]
    """The first and the last one known to have it."""
    gone_from: str

    def found(self) -> str:
        """How it shows in this release; empty: it does not."""
        kind = load_subject(self.subject)
        for seed, strategy in enumerate(("random", "pct", "pos", "fair")):
            _, found = explore_subject(kind, self.workload, strategy, SCHEDULES // 4, seed=seed)
            if found is not None:
                return str(found.failure.error).splitlines()[0]
        return ""

    def verdict(self) -> bool | None:
        """Whether it is as it should be in this release; None for one of which nothing is said."""
        import vllm

        release = _numbers(vllm.__version__)
        shown = self.found()
        if _numbers(self.in_releases[0]) <= release <= _numbers(self.in_releases[1]):
            return shown.partition(",")[0].partition(":")[0] in self.shows
        return not shown if release >= _numbers(self.gone_from) else None


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.partition("+")[0].split(".")[:3] if part.isdigit())


PRIORITIES = Workload(
    settings=Settings(num_pages=3, page_size=2, max_running=5, max_step_tokens=12, max_context=6, priorities=True),
    arrivals=(Arrival(prompt=(97,), max_new_tokens=4), Arrival(prompt=(97, 98), max_new_tokens=4, priority=1)),
)
"""The one that runs first is preempted for the other one, which came later and is more important."""
PUBLIC = (
    Public(
        "priority_preemption_of_a_request_already_scheduled",
        "issue 23347, repaired by 23713",
        "With priorities, a request that this step has scheduled already is preempted for another one, and stays among "
        "those that are scheduled: an assertion fails, or it is computed with blocks that are free.",
        "vllm",
        PRIORITIES,
        ("raises_nothing", "own_pages"),
        ("0.10.1", "0.10.1"),
        "0.11.1",
    ),
    Public(
        "preempted_request_stays_in_the_step",
        "left by 23713, repaired in 0.11.1; see 28558",
        "With priorities, a request that is preempted in the step that has scheduled it keeps its tokens in "
        "`num_scheduled_tokens`: the step computes it, and nothing says with which blocks.",
        "vllm",
        PRIORITIES,
        ("raises_nothing", "own_pages"),
        ("0.10.2", "0.11.0"),
        "0.11.1",
    ),
    Public(
        "later_requests_first_without_chunks",
        "repaired by 28911",
        "Without chunked prefill, a prompt that does not fit into what is left of a step is passed over, and later "
        "ones begin before it.",
        "vllm",
        Workload(
            settings=Settings(num_pages=12, page_size=2, max_running=5, max_step_tokens=10, max_context=10),
            arrivals=(
                Arrival(prompt=(97, 97, 99, 98, 99, 99, 97)),
                Arrival(prompt=(97, 97, 99, 98, 99, 99, 97, 97, 98)),
                Arrival(prompt=(99,)),
            ),
        ),
        ("admission_order",),
        ("0.10.1", "0.11.2"),
        "0.12.0",
    ),
    Public(
        "tokens_in_flight_of_a_preempted_request",
        "issues 30142 and 41190, repaired by 48245",
        "With three steps in flight, what a preempted request had in flight is taken for what it draws after it has "
        "resumed: a token is told twice, or an assertion on its placeholders fails.",
        "vllm-pipeline",
        Workload(
            settings=Settings(num_pages=4, page_size=2, max_running=5, max_step_tokens=18, max_context=9, in_flight=3),
            arrivals=(Arrival(prompt=(97,), max_new_tokens=3), Arrival(prompt=(98,), max_new_tokens=6)),
        ),
        ("raises_nothing", "outputs", "known_tokens"),
        ("0.10.1", "0.26.0"),
        "0.28.0",
    ),
)


def main() -> None:
    import vllm

    for each in PUBLIC:
        print(f"vLLM {vllm.__version__}: {each.name} ({each.reported}): {each.found() or 'holds'}", flush=True)


if __name__ == "__main__":
    main()
