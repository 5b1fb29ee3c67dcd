"""What two processes say in known lives of their link stays as it is: see tests/actors/conversations.py."""

from __future__ import annotations

from tests.actors.conversations import digests, kept


def test_what_two_processes_say_to_each_other_in_known_lives_stays_as_it_is() -> None:
    now, before = digests(), kept()
    changed = sorted(seed for seed in now.keys() | before.keys() if now.get(seed) != before.get(seed))
    assert not changed, f"lives {changed} are others: if that is meant, python -m tests.actors.conversations"
