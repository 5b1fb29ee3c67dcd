"""All mutants."""

from __future__ import annotations

from tests.mutants.in_adapters import ADAPTERS
from tests.mutants.in_all import ALL
from tests.mutants.in_apart import APART
from tests.mutants.in_asked import ASKED
from tests.mutants.in_checkpoints import CHECKPOINTS
from tests.mutants.in_control import CONTROL
from tests.mutants.in_edges import EDGES
from tests.mutants.in_failing import FAILING
from tests.mutants.in_hand_over import HAND_OVER
from tests.mutants.in_lasting import LASTING
from tests.mutants.in_lifecycle import LIFECYCLE
from tests.mutants.in_limits import LIMITS
from tests.mutants.in_memory import MEMORY
from tests.mutants.in_outputs import OUTPUTS
from tests.mutants.in_pausing import PAUSING
from tests.mutants.in_pipeline import PIPELINE
from tests.mutants.in_promises import PROMISES
from tests.mutants.in_ranks import RANKS
from tests.mutants.in_replicas import REPLICAS
from tests.mutants.in_residency import RESIDENCY
from tests.mutants.in_scarcity import SCARCITY
from tests.mutants.in_sessions import SESSIONS
from tests.mutants.in_speculation import SPECULATION
from tests.mutants.in_uses import USES
from tests.mutants.in_weights import WEIGHTS
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *(*MEMORY, *LIFECYCLE, *OUTPUTS, *CONTROL),
    *(*CHECKPOINTS, *PROMISES, *PAUSING, *LIMITS, *SPECULATION, *SESSIONS, *WEIGHTS),
    *(*SCARCITY, *ADAPTERS, *RESIDENCY, *PIPELINE, *RANKS, *REPLICAS, *HAND_OVER, *APART, *ASKED, *LASTING, *EDGES),
    *(*FAILING, *ALL, *USES),
)

EQUIVALENT = {
    "page-table changes of before a lost step are still sent to the worker": (
        "they name places of slots that nobody has by then, and whoever gets such a slot writes its own entries after "
        "them before it reads any."
    ),
    "a slot comes free while a step in flight still names it": (
        "steps run in order, so the step that names it has run before the next holder's first one, and results are "
        "told apart by rows."
    ),
    "pages that come late, for a prefill that was given up, are kept": (
        "a page is named by all that it depends on, so it is right for whoever looks for its name; it costs a place in "
        "host memory."
    ),
    "nobody is asked to give way when all that run wait for each other's pages": (
        "what a request is promised when it is admitted, and renewed promises when pages run short, keep requests from "
        "getting there; the code is a second line of defence."
    ),
}
"""Edits that were tried and that nothing shows -> why."""
