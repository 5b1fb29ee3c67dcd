"""Prints properties as documentation: `python -m pawl.loops.properties.documents` writes docs/properties.md.

With `--check` nothing is written, and the exit code is 1 when the file is not what the code says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pawl.lifecycle.documents import Page, table
from pawl.lifecycle.properties.base import Property
from pawl.lifecycle.properties.grammar import GrammarIsAFold
from pawl.lifecycle.properties.monitor import PROPERTIES
from pawl.loops.decision_log import OneDecisionLog
from pawl.loops.properties.base import StateProperty
from pawl.loops.properties.state import STATE_PROPERTIES
from pawl.loops.recomputed import Recomputed

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "properties.md"

NO_FEATURE = "all of it: there is no such feature yet"

MEMORY: dict[str, str] = {
    "conservation": "",
    "single_owner": "",
    "no_reuse_before_fence": "transfers of lower tiers: by the generations of their handles, not by records; window "
    "pages, of which no record tells: in simulated runs",
    "row_shape": "what a page holds: by the ghost in simulated runs",
    "hold_accounting": "",
    "auxiliary_conservation": "open texts, messages that nobody took, grammar jobs: in simulated runs",
    "allocation_is_a_transaction": "",
    "read_after_commit": "what is read: by the ghost in simulated runs",
    "namespace_isolation": "",
}
LIFECYCLE: dict[str, str] = {
    "legal_lifecycle": "",
    "silence_after_abort": "text: by simulated clients; the trace has the number of tokens",
    "abort_is_total": "",
    "incarnation": "equal ids of clients: by the gateway's tests",
    "bounded_progress": "deadlines: in simulated runs",
    "bounded_gaps": "what steps take, as the loop learns it: in simulated runs, by an account of all of them; that "
    "they take as much: by its tests, on machines of given costs",
    "fault_isolation": "outputs of others: by the four properties of outputs",
    "admission_is_monotone": "starvation under a policy's order: `bounded_overtaking` in simulated runs",
    "drafts_in_bounds": "whether a draft is right: by what the request gets",
    "fair_micro_batches": "that no stage idles: by what virtual time a simulated pipeline takes",
    "work_conserving": "idle steps while something runs or is in flight; that an admission goes on while there is "
    "room: in simulated runs",
}
OUTPUTS: dict[str, str] = {
    "schedule_equivalence": "backends that promise nothing of the kind; parallel sizes; log-probabilities",
    "retraction_transparency": "the same; text and usage: by simulated clients",
    "cache_hit_equivalence": "the same",
    "batch_independence": "the same",
    "stream_equals_result": "text: by simulated clients",
    "stop_semantics": "stop strings: by simulated clients, to the last character; the trace has tokens",
    "logprobs_as_asked": "the numbers: by computing them again",
    "embedded_once": "the vector itself: by simulated clients; the trace has its digest",
    "grammar_is_a_fold": "runs whose model's vocabulary is not at hand: the audit says so",
}
CONTROL: dict[str, str] = {
    "quiescent_flush": "",
    "limits_hold": "",
    "weight_epochs": "which weights computed: by the ghost, and by what simulated clients get under each name",
    "weight_groups": "what was sent, and that who waits is told: by simulated clients",
    "session_atomicity": "turns that are refused for no reason: by simulated clients",
    "adapter_references": "which adapter computed: by the ghost, and by what simulated clients get under each name",
    "one_decision_log": "several ranks: there is one",
    "observability_conservation": "contents of the cache against its events: at rest in simulated runs",
}
OF_RUNS: dict[str, str] = {
    "bounded_overtaking": "At most `limit` requests that came later, of equal priority, are admitted before a request "
    "that waits for nothing but its turn: neither for its grammar or adapter, nor for what another tier or another "
    "replica has of its prompt, nor for a page that another computes right now.",
    "policy_as_stated": "A policy is offered those that wait by arrival. `lpm` prefers those of whose prompts the "
    "cache has most pages; `dfs-weight` goes through the tree of their pages, and of two subtrees prefers the one in "
    "which more of them are. Equal ones go by arrival.",
    "cache_as_stated": "A request begins with the longest beginning that is cached, and what it computes beyond that "
    "is cached once. Of pages that nobody holds and nothing goes on from, those leave first that the policy says, by "
    "who has used them, as many as are wanted and no more than memory lacks, and behind each step that may touch them.",
    "tiers_as_stated": "Below the device a page leaves for want of room and for nothing else: where there are files "
    "that have room, and a disk that writes, none does; and of host memory alone the least recently used one leaves. "
    "What was read is in host memory after that, as far as it has room.",
    "placement": "Each policy of the router chooses as it is stated, seen from prompts and loads alone. Prefix "
    "affinity goes where the longest part of a prompt was seen last, and where that replica has more than its bound "
    "above the least busy, or nothing of the prompt was seen, to the shortest queue.",
    "scaling": "The number of replicas stays within its bounds. It changes, of itself, exactly when there were enough "
    "open requests for each, or few for one less, for as long as the rule says: seen from the history of loads alone. "
    "Of those that are too many those leave that have the fewest requests.",
}
"""What only simulated runs are held to, by `pawl.testing`: name -> statement, as the docstring of its class has it."""
GROUPS: dict[str, dict[str, str]] = {"Memory": MEMORY, "Lifecycle": LIFECYCLE, "Outputs": OUTPUTS, "Control": CONTROL}
"""Every property by its name, and what its class does not judge."""

_INTRODUCTION = """\
# Properties

<!-- Written by `python -m pawl.loops.properties.documents` from the classes of the properties. Do not edit. -->

A property is one class with one name, and its docstring is its statement. The same class judges simulated runs,
recorded ones and a live server ([checking.md](checking.md) says how to run each). Where it is judged:

* **trace**: from records, in `pawl audit` and in simulated runs;
* **step**: on the state of the loop after every step, in O(1): live (`pawl_violations_total{property}`), in simulated
  runs, and on the loop that an audit builds again;
* **leisure**: on the whole state: live when the engine has been idle for a second and when it stops, in simulated runs
  at rest, in an audit every 256 steps and at the end;
* **replay**: by deciding everything again from the recorded inputs;
* **model**: by computing the words again, in `pawl audit --recompute`, and by the ghost in replayed simulated runs.

Each class has canaries, planted violations that it must report: `tests/lifecycle/canaries*.py`,
`tests/loops/test_properties_state.py`, `tests/loops/test_recomputed.py`. Defects
that were planted in the engine itself are in [mutants.md](mutants.md)."""


class Judge(NamedTuple):
    """The class of a property, and where it judges."""

    kind: type[Property]
    where: tuple[str, ...]


def judges() -> dict[str, Judge]:
    """By name, every property that has a class below the room of the server."""
    found = {kind.name: Judge(kind, ("trace",)) for kind in PROPERTIES}
    found[OneDecisionLog.name] = Judge(OneDecisionLog, ("replay",))
    found[GrammarIsAFold.name] = Judge(GrammarIsAFold, ("trace",))
    found[Recomputed.name] = Judge(Recomputed, ("model",))
    for state in STATE_PROPERTIES:
        before = found[state.name].where if state.name in found else ()
        found[state.name] = Judge(state, (*before, *_looks(state)))
    return found


def _looks(kind: type[StateProperty]) -> Iterator[str]:
    if kind.check is not StateProperty.check or kind.check_idle is not StateProperty.check_idle:
        yield "step"
    if kind.check_all is not StateProperty.check_all:
        yield "leisure"


def statement(kind: type) -> str:
    """The first paragraph of the docstring on one line."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split()).replace("|", "\\|")


def document() -> str:
    """The text of docs/properties.md."""
    return "\n".join((_INTRODUCTION, *_groups(), *_others())) + "\n"


def _groups() -> Iterator[str]:
    by_name, number = judges(), 0
    for group, properties in GROUPS.items():
        yield from ("", f"## {group}", "")
        rows = []
        for name, rest in properties.items():
            number += 1
            judge = by_name.get(name)
            told = (statement(judge.kind), ", ".join(judge.where)) if judge is not None else ("", "")
            rows.append((str(number), f"`{name}`", *told, rest))
        yield from table(("", "property", "statement", "judged", "not judged by it, or elsewhere"), rows)


def _others() -> Iterator[str]:
    known = {name for properties in GROUPS.values() for name in properties}
    yield from ("", "## Order, causes, and records themselves", "")
    rows = [
        (f"`{name}`", statement(judge.kind), ", ".join(judge.where))
        for name, judge in judges().items()
        if name not in known
    ]
    well_formed = "Records fit together (a step is planned before it is committed), and an engine writes such records."
    rows.append(("`well_formed`", well_formed, "trace"))
    yield from table(("property", "statement", "judged"), rows)
    yield from ("", "## Of simulated runs alone", "")
    yield from table(("property", "statement"), [(f"`{name}`", text) for name, text in OF_RUNS.items()])


def main(arguments: Sequence[str] | None = None, path: Path = DOCUMENT) -> int:
    """Write the document, or check it. The exit code."""
    return Page(path, document, "pawl.loops.properties.documents").keep(arguments)


if __name__ == "__main__":
    sys.exit(main())
