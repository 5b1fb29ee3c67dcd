"""Defects planted into the link, each of which a test of it must catch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from pawl.actors.runtime.processes import frames
from pawl.actors.runtime.processes.link import Link
from pawl.actors.runtime.processes.mailboxes import Flow, Outbox
from pawl.actors.runtime.processes.system import ProcessSystem
from tests.actors import test_runtime_processes_link as claims
from tests.mutants.mutant import Edit, Group, Mutant, planted


class Defect(NamedTuple):
    """What is wrong, and the test that says so."""

    name: str
    edit: Edit
    claim: Callable[[claims.Between], None]


DEFECTS = (
    Defect(
        "a number is left out",
        Edit(Link._posted, "self._numbers.get(key, 0) + 1", "self._numbers.get(key, 0) + 2"),
        claims.test_data_that_was_not_taken_fills_the_outbox_however_much_the_wire_holds,
    ),
    Defect(
        "a gap is not seen",
        Edit(Link._deliver, "if post.number > edge.arrived + 1:", "if False:"),
        claims.test_a_lost_message_is_the_loss_of_its_process_and_nothing_after_it_is_heard,
    ),
    Defect(
        "what comes twice is heard twice",
        Edit(Link._deliver, "if post.number <= edge.arrived:", "if False:"),
        claims.test_a_doubled_message_is_heard_once,
    ),
    Defect(
        "a credit is never returned",
        Edit(Flow.add, "if self.total() - self.told >= self.batch:", "if False:"),
        claims.test_data_that_was_not_taken_fills_the_outbox_however_much_the_wire_holds,
    ),
    Defect(
        "credits are believed",
        Edit(Outbox.credit, "if not 0 <= count <= self._num_sent:", "if False:"),
        claims.test_a_credit_for_what_was_not_sent_is_malformed,
    ),
    Defect(
        "Down comes before the last message",
        Edit(
            ProcessSystem.lost,
            'self._send_down(watcher, cell.name, f"lost: {reason}")',
            'self.send(watcher, Down(cell.name, f"lost: {reason}"), 0)',
        ),
        claims.test_down_comes_after_everything_that_was_heard_and_nothing_comes_after_it,
    ),
    Defect(
        "silence is not noticed",
        Edit(Link.tick, ">= self._heartbeat.patience_s:", ">= 1e9:"),
        claims.test_a_process_that_is_silent_is_lost_and_one_that_beats_is_not,
    ),
    Defect(
        "checksums of headers are not looked at",
        Edit(frames.read, "if _checksum(body, message) != _CHECKSUM.unpack_from(frames[0])[0]:", "if False:"),
        lambda between: claims.test_no_handler_sees_a_damaged_message_and_nothing_dies(between, 500),
    ),
)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_defect_of_the_link_is_caught(defect: Defect) -> None:
    mutant = Mutant(defect.name, Group.CONTROL, "", "", defect.name, (defect.edit,))
    with planted(mutant):
        between = claims.Between()
        with pytest.raises((AssertionError, IndexError)):
            defect.claim(between)
    between.stop()
