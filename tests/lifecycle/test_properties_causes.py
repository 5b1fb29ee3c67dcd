"""Why requests end: what an order says is true, also of time that is over for who asked and not for the request."""

from __future__ import annotations

import msgspec

from pawl.lifecycle.records import Delivered
from pawl.lifecycle.states import Cause
from tests.lifecycle.canaries import STORY
from tests.lifecycle.story import changed
from tests.lifecycle.test_properties import judged


def test_who_gives_a_probe_up_after_its_own_time_ends_it_as_a_timeout() -> None:
    """As `/health_generate` does, whose request has the time of any other."""
    ended = changed(STORY, "abort 2", cause=Cause.TIMEOUT)
    told = [
        msgspec.structs.replace(each, fields={**each.fields, "cause": "timeout", "message": "health probe"})
        if isinstance(each, Delivered) and each.kind == "abort"
        else each
        for each in ended
    ]
    assert "true_causes" in {each.property for each in judged(ended).violations}
    assert "true_causes" not in {each.property for each in judged(told).violations}
