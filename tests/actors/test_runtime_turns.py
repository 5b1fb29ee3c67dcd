"""What event loops and threads are asked in known lives of actors stays as it is: see tests/actors/turns.py."""

from __future__ import annotations

from tests.actors.turns import digests, kept


def test_what_runs_actors_in_known_lives_stays_as_it_is() -> None:
    now, before = digests(), kept()
    changed = sorted(life for life in now.keys() | before.keys() if now.get(life) != before.get(life))
    assert not changed, f"lives {changed} are others: if that is meant, python -m tests.actors.turns"
