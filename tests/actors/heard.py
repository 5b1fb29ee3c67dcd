"""A request as a tokenizer sends it, and what a detokenizer hears of it."""

from __future__ import annotations

import numpy as np

from pawl.actors.messages.generate import Ended, Generate, Opened, StepTokens, TextOptions
from pawl.lifecycle.request import SamplingParameters


def asking(request: int, prompt: list[int], max_new_tokens: int, salt: str) -> Generate:
    """A request that is drawn greedily."""
    return Generate(
        request=request,
        rid=f"r{request}",
        tokens=np.array(prompt, np.int32),
        sampling=SamplingParameters(temperature=0.0, max_new_tokens=max_new_tokens),
        text_options=TextOptions(),
        namespace=salt,
    )


class Heard:
    """Tokens and ends of every request."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.ended: dict[int, Ended] = {}
        self._row_of: dict[int, int] = {}

    def hear(self, message: Opened | StepTokens) -> None:
        """A message of a scheduler to its detokenizer."""
        match message:
            case Opened():
                self._row_of[message.row] = message.request
                self.tokens[message.request] = []
            case StepTokens():
                for row, token in zip(message.rows.tolist(), message.tokens.tolist(), strict=True):
                    assert self._row_of[row] not in self.ended, "a token after the terminal record"
                    self.tokens[self._row_of[row]].append(token)
                for end in message.ended:
                    assert end.request not in self.ended, "two terminal records"
                    self.ended[end.request] = end
