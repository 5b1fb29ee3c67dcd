"""A loop over a real model, driven by hand: requests in, tokens and log-probabilities out. No actors, no threads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pawl.gpu.models.config import ModelConfig
from pawl.gpu.runner import Runner
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.states import Cause
from pawl.lifecycle.step import Int32s, StepBatch, StepResult
from pawl.loops.batch import ScheduledBatch
from tests.loops.driver import Driver


@dataclass(frozen=True)
class Asked:
    """One request."""

    prompt: tuple[int, ...]
    num_output: int = 6
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    penalty: float = 0.0
    num_top: int | None = 2
    """None: no log-probabilities, and then a backend may choose the likeliest token by itself."""
    named: tuple[int, ...] = ()
    """Token ids that are scored at every place."""
    prompt_scores: bool = False
    """Whether the prompt's tokens are scored too; what comes of that is not kept here."""

    @property
    def sampling(self) -> SamplingParameters:
        return SamplingParameters(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            frequency_penalty=self.penalty,
            max_new_tokens=self.num_output,
            top_logprobs=self.num_top,
            token_ids_logprob=self.named,
            prompt_logprobs=self.prompt_scores,
            eos_token_ids=(),
        )


@dataclass
class Answered:
    """What came back: equal only if every bit is."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[bytes] = field(default_factory=list)
    """Of each token, the float32 of the chosen one, of the likeliest and of the named."""


class Worker:
    """A runner that can be asked for one step after the other. A store of its own; weights made once."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype, **settings: Any) -> None:
        self.runner = Runner(config, weights, dtype=dtype, **settings)

    def launch(self, batch: StepBatch) -> StepResult:
        return self.runner.collect(self.runner.launch(batch))


class Serving(Driver):
    """One run of the engine's loop on a worker that other runs use before and after."""

    def __init__(self, worker: Worker, **overrides: Any) -> None:
        runner = worker.runner
        settings: dict[str, Any] = {
            "num_pages": runner.kv.num_pages,
            "page_size": runner.kv.page_size,
            "max_context": runner.max_context,
            "max_running": runner.num_slots,
        }
        super().__init__(**settings | overrides)
        runner.reset()
        self.ghost = worker  # type: ignore[assignment]
        self.answer_of: dict[int, Answered] = {}

    def ask(self, asked: Asked) -> int:
        request, self._next = self._next, self._next + 1
        self.answer_of[request] = Answered()
        ticket = RequestInfo(request, f"r{request}", asked.sampling, "", self.now)
        self.loop.requests.submit(ticket, np.array(asked.prompt, np.int32), 0, float("inf"), self.now)
        return request

    def output(self, rows: Int32s, tokens: Int32s, scheduled: ScheduledBatch, result: StepResult) -> None:
        super().output(rows, tokens, scheduled, result)
        wanted = np.flatnonzero(self.loop.wanted_tokens(scheduled))
        for index, row, token in zip(wanted, rows.tolist(), tokens.tolist(), strict=True):
            answer = self.answer_of[self.request_of[row]]
            count = self.loop.table.info(row).sampling.num_rivals
            answer.tokens.append(token)
            if result.logprobs is not None and count is not None:
                scores = result.logprobs
                answer.logprobs.append(scores.chosen[index].tobytes() + scores.top[index, :count].tobytes())

    def answers(self, *everyone: Asked, at_once: int | None = None) -> list[Answered]:
        """Ask all, `at_once` of them at a time (None: together), and wait until each has ended as it should."""
        requests: list[int] = []
        for begin in range(0, len(everyone), at_once or len(everyone) or 1):
            requests += [self.ask(one) for one in everyone[begin : begin + (at_once or len(everyone))]]
            self.run()
        assert all(self.cause(request) is Cause.LENGTH for request in requests)
        return [self.answer_of[request] for request in requests]
