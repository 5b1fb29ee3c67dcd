"""What a request is for is told by what it brings."""

from __future__ import annotations

import pytest
from msgspec import structs

from pawl.actors.measures import Operation
from pawl.actors.messages.generate import Submit

TEXT = Submit(request=1, rid="r", text="x")


@pytest.mark.parametrize(
    ("submit", "operation"),
    [
        (TEXT, Operation.TEXT_COMPLETION),
        (structs.replace(TEXT, text=None, chat=()), Operation.CHAT),
        (structs.replace(TEXT, sampling=structs.replace(TEXT.sampling, embed=True)), Operation.EMBEDDINGS),
    ],
)
def test_a_request_is_for_a_text_an_answer_or_a_vector(submit: Submit, operation: Operation) -> None:
    assert submit.operation is operation
