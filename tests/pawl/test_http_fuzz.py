"""Whatever a body holds, the answer is a result or a refusal, never a failure of the server."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pawl.actors.control.requests import ABORT
from tests.pawl.routes import GENERATING, body_of

ROUTES = [*GENERATING, ("/abort_request", ABORT.taken, {"rid": "x"})]

LEAVES = (
    st.none()
    | st.booleans()
    | st.sampled_from([-(1 << 70), -2, -1, 0, 1, 2, 3, 255, 256, 1 << 31, 1 << 63])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "x", "hello", "\0", "é\ud7ff", "none", "text"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def bodies(kind: type[msgspec.Struct], valid: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A valid body in which some fields are something else."""
    names = st.sampled_from([field.name for field in msgspec.structs.fields(kind)])
    changes = st.dictionaries(names, VALUES, max_size=3)
    return changes.map(lambda change: body_of(kind, {**valid, **change}))


CASES = st.one_of(*(st.tuples(st.just(path), bodies(kind, valid)) for path, kind, valid in ROUTES))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(case=CASES)
def test_no_body_makes_the_server_fail(client: httpx.Client, case: tuple[str, dict[str, Any]]) -> None:
    path, body = case
    response = client.post(path, json=body)
    # 413 only where many choices were asked for at once.
    assert response.status_code in (200, 400, 404, 413), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert error["message"]
        assert response.status_code != 413 or "at a time" in error["message"]
