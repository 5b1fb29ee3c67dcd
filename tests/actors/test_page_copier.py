"""The worker's part in moving pages, alone: what a reset leaves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from pawl.actors.messages.transfer import Blocks, Fill, Filled, Save, Saved
from pawl.actors.names import NAMES
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.tiers.page_copier import PageCopier

PAGES = np.array([0], np.int32)
DATA = np.zeros((1, 4), np.uint8)
KEY = b"k" * 16


def copier() -> tuple[PageCopier, ManualContext]:
    actor: Any = SimpleNamespace(started=lambda: None)
    context = ManualContext(actor, NAMES.worker)
    runner: Any = SimpleNamespace(read_pages=lambda pages: DATA, write_pages=lambda pages, data: None)
    return PageCopier(actor, runner, NAMES), context


def test_pages_that_wait_for_a_copy_which_a_reset_makes_void_are_written() -> None:
    made, context = copier()
    made.fill(Fill(1, PAGES, DATA, after=2))
    assert context.take(NAMES.scheduler) == []
    made.reset(3)
    assert context.take(NAMES.scheduler) == [Filled(1, 1)]


def test_copies_from_before_a_reset_come_to_nothing_and_the_first_behind_it_is_made() -> None:
    made, context = copier()
    made.reset(3)
    made.save(Save(2, PAGES, (KEY,)), lost=False)
    assert (context.take(NAMES.scheduler), context.take(NAMES.storage)) == ([Saved(2)], [])
    made.save(Save(3, PAGES, (KEY,)), lost=False)
    (blocks,) = context.take(NAMES.storage)
    assert isinstance(blocks, Blocks)
    assert (blocks.number, context.take(NAMES.scheduler)) == (3, [])
