"""What every runtime must do, told from outside: one suite for every runtime there is.

A subclass gives `make_system` and `run_until`; the tests use nothing else that differs. They never sleep: they wait for
what an actor under test wrote into the journal. What must come in a known order is put into the mailboxes before the
system starts, so that the actor finds all of it there.
"""

from __future__ import annotations

from tests.actors.conformance_delivery import DeliveryConformance
from tests.actors.conformance_failure import FailureConformance
from tests.actors.conformance_life import LifeConformance


class RuntimeConformance(DeliveryConformance, LifeConformance, FailureConformance):
    """All of it."""
