"""What the threads that read wires do in known lives stays as it is: see tests/actors/readings.py."""

from __future__ import annotations

from tests.actors.readings import digests, kept


def test_what_those_do_who_read_wires_in_known_lives_stays_as_it_is() -> None:
    now, before = digests(), kept()
    changed = sorted(seed for seed in now.keys() | before.keys() if now.get(seed) != before.get(seed))
    assert not changed, f"lives {changed} are others: if that is meant, python -m tests.actors.readings"
