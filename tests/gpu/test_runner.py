"""The runner executes StepBatches: what it keeps between steps, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from pawl.gpu.adapters.low_rank import Adapter, PackedAdapter
from pawl.gpu.backend import BackendUnavailable, ForwardInputs, GreedyBackend
from pawl.gpu.batches import InvalidBatch
from pawl.gpu.launched import OutOfOrder
from pawl.gpu.runner import Runner
from pawl.gpu.weights.source import load_weights, resolve_source
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import SlotAssignment, StepBatch, StepResult
from tests.gpu.driving import DEVICES, int32
from tests.gpu.tiny import VOCABULARY, reference_logits, save_tiny

GREEDY = SamplingParameters(temperature=0.0)
PENALISED = SamplingParameters(temperature=0.0, repetition_penalty=1.5)
PAGE = 4
PAGES_PER_SLOT = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("qwen3", tmp_path / "qwen3")


def made(folder: Path, device: str = "cpu", **options: Any) -> Runner:
    source = resolve_source(str(folder))
    settings: dict[str, Any] = {
        "num_pages": 4 * PAGES_PER_SLOT,
        "page_size": PAGE,
        "num_slots": 4,
        "max_context": PAGE * PAGES_PER_SLOT,
        "device": device,
        "dtype": torch.float32,
        "threads": 1,
        "backend": "torch",
    }
    return Runner(source.config, load_weights(source, torch.float32), **{**settings, **options})


class Steps:
    """Builds batches. Slot s owns pages 8s .. 8s+7 in reverse order, all entered when it is admitted."""

    def __init__(self) -> None:
        self.step = 0

    def batch(
        self,
        *segments: tuple[int, int, list[int] | None, bool],
        admit: dict[int, SamplingParameters] | None = None,
        history: list[int] | None = None,
        num_output: int = 0,
    ) -> StepBatch:
        """Segments are (slot, start, tokens or None for chained, sampled)."""
        admit = admit or {}
        history = history or []
        self.step += 1
        return StepBatch(
            step=self.step,
            slots=int32(*(segment[0] for segment in segments)),
            starts=int32(*(segment[1] for segment in segments)),
            lengths=int32(*(1 if segment[2] is None else len(segment[2]) for segment in segments)),
            tokens=int32(*(token for segment in segments for token in segment[2] or [])),
            chained=np.array([segment[2] is None for segment in segments], np.bool_),
            samples=np.array([segment[3] for segment in segments], np.bool_),
            page_slots=np.repeat(int32(*admit), PAGES_PER_SLOT),
            page_indices=np.tile(np.arange(PAGES_PER_SLOT, dtype=np.int32), len(admit)),
            pages=int32(*(PAGES_PER_SLOT * slot + 7 - index for slot in admit for index in range(PAGES_PER_SLOT))),
            admitted=tuple(
                SlotAssignment(slot, sampling, len(history) - num_output, int32(*history), num_output)
                for slot, sampling in admit.items()
            ),
        )


def execute(runner: Runner, batch: StepBatch) -> StepResult:
    return runner.collect(runner.launch(batch))


def greedy_reference(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(reference_logits("qwen3", tokens)[-1].argmax()))
    return tokens[len(prompt) :]


PROMPTS = {0: [5, 9, 60, 31, 2, 77, 8], 2: [11], 3: [90, 4, 4, 18]}


@pytest.mark.parametrize("device", DEVICES)
def test_mixed_steps_with_chained_tokens_generate_what_transformers_would(folder: Path, device: str) -> None:
    runner, steps = made(folder, device), Steps()
    outputs: dict[int, list[int]] = {0: [], 2: [], 3: []}
    long, one, short = PROMPTS[0], PROMPTS[2], PROMPTS[3]

    def run(*segments: tuple[int, int, list[int] | None, bool], **options: Any) -> None:
        result = execute(runner, steps.batch(*segments, **options))
        sampled = [segment[0] for segment in segments if segment[3]]
        assert len(result.tokens) == len(sampled)
        for slot, token in zip(sampled, result.tokens.tolist(), strict=True):
            outputs[slot].append(token)

    run((0, 0, long[:3], False), (2, 0, one, True), admit={0: GREEDY, 2: GREEDY})
    run((2, 1, None, True), (0, 3, long[3:6], False), (3, 0, short, True), admit={3: GREEDY})
    run((3, 4, None, True), (0, 6, long[6:], True), (2, 2, None, True))
    for index in range(6):
        run((2, 3 + index, None, True), (0, 7 + index, None, True), (3, 5 + index, None, True))
    for slot, prompt in PROMPTS.items():
        assert outputs[slot] == greedy_reference(prompt, len(outputs[slot]))


def test_steps_launched_ahead_give_the_same_tokens(folder: Path) -> None:
    runner, steps = made(folder), Steps()
    launched = [runner.launch(steps.batch((0, 0, PROMPTS[0], True), admit={0: GREEDY}))]
    launched += [runner.launch(steps.batch((0, 7 + index, None, True))) for index in range(5)]
    tokens = [int(runner.collect(one).tokens[0]) for one in launched]
    assert tokens == greedy_reference(PROMPTS[0], 6)


def test_a_prefix_in_shared_pages_is_used_and_not_recomputed(folder: Path) -> None:
    runner, steps = made(folder), Steps()
    prompt = PROMPTS[0]
    execute(runner, steps.batch((0, 0, prompt[:4], False), admit={0: GREEDY}))
    batch = steps.batch((1, 4, prompt[4:], True), admit={1: GREEDY})
    pages = batch.pages.copy()
    pages[0] = 7  # the first page of slot 0
    result = execute(runner, msgspec.structs.replace(batch, pages=pages))
    assert result.tokens.tolist() == greedy_reference(prompt, 1)


def test_a_page_table_entry_takes_effect_before_its_own_step(folder: Path) -> None:
    runner, steps = made(folder), Steps()
    batch = steps.batch((0, 0, PROMPTS[0], True), admit={0: GREEDY})
    expected = execute(runner, batch).tokens
    # The slot moves to other pages; everything is computed there.
    moved = msgspec.structs.replace(batch, step=2, pages=batch.pages + PAGES_PER_SLOT)
    before = runner.kv.data[:, :, :PAGES_PER_SLOT].clone()
    assert execute(runner, moved).tokens == expected
    assert torch.equal(runner.kv.data[:, :, :PAGES_PER_SLOT], before)


def test_a_seeded_request_draws_the_same_after_a_retraction(folder: Path) -> None:
    sampling = SamplingParameters(seed=3, temperature=1.5, presence_penalty=1.0, repetition_penalty=1.3)
    prompt = PROMPTS[0]
    runner, steps = made(folder), Steps()
    outputs = execute(runner, steps.batch((0, 0, prompt, True), admit={0: sampling}, history=prompt)).tokens.tolist()
    for index in range(5):
        outputs += execute(runner, steps.batch((0, 7 + index, None, True))).tokens.tolist()
    again, past = Steps(), prompt + outputs[:3]
    back = again.batch((2, 0, past, True), admit={2: sampling}, history=past, num_output=3)
    other = made(folder)
    returned = execute(other, back).tokens.tolist()
    for index in range(2):
        returned += execute(other, again.batch((2, 10 + index, None, True))).tokens.tolist()
    assert returned == outputs[3:]


def test_prompt_logprobs_cover_the_prompt_once_whatever_the_chunks(folder: Path) -> None:
    sampling = SamplingParameters(temperature=0.0, prompt_logprobs=True, top_logprobs=2, token_ids_logprob=(5, 3))
    prompt, other = PROMPTS[0], PROMPTS[3]
    expected = reference_logits("qwen3", prompt).log_softmax(-1)
    runner, steps = made(folder), Steps()
    results = [
        execute(runner, steps.batch((1, 0, other, True), (0, 0, prompt[:3], False), admit={0: sampling, 1: GREEDY})),
        execute(runner, steps.batch((1, 4, None, True), (0, 3, prompt[3:4], False))),
        execute(runner, steps.batch((0, 4, prompt[4:], True), (1, 5, None, True))),
        execute(runner, steps.batch((0, 7, None, True), (1, 6, None, True))),
    ]
    found: dict[int, tuple[float, list[int], list[float]]] = {}
    for result in results:
        for scores in result.prompt_logprobs:
            assert scores.slot == 0
            for index in range(len(scores.chosen)):
                position = scores.start + 1 + index
                row = expected[position - 1]
                own = row[prompt[position]]
                # Of tokens that are about as likely either may come first.
                assert (row > own + 1e-3).sum() < scores.ranks[index] <= (row > own - 1e-3).sum()
                assert position not in found
                found[position] = scores.chosen[index], scores.top_tokens[index].tolist(), scores.top[index].tolist()
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    for position, (chosen, top_tokens, top) in found.items():
        row = expected[position - 1]
        best = row.topk(2)
        assert chosen == pytest.approx(row[prompt[position]].item(), abs=1e-4)
        assert top_tokens == [*best.indices.tolist(), 5, 3]
        assert top == pytest.approx([*best.values.tolist(), *row[[5, 3]].tolist()], abs=1e-4)
    # Scoring does not disturb drawing.
    assert int(results[2].tokens[0]) == int(expected[-1].argmax())
    assert [int(result.tokens[-1]) for result in results] == greedy_reference(other, 4)


def test_logprobs_of_drawn_tokens_are_aligned_with_them(folder: Path) -> None:
    runner, steps = made(folder), Steps()
    asking = SamplingParameters(temperature=0.0, top_logprobs=1)
    batch = steps.batch(
        (0, 0, PROMPTS[0], True),
        (1, 0, [3, 4], False),
        (2, 0, PROMPTS[2], True),
        admit={0: GREEDY, 1: GREEDY, 2: asking},
    )
    result = execute(runner, batch)
    assert result.logprobs is not None
    expected = reference_logits("qwen3", PROMPTS[2])[-1].log_softmax(-1)
    assert np.isnan(result.logprobs.chosen[0])
    assert result.logprobs.chosen[1] == pytest.approx(expected.max().item(), abs=1e-4)
    assert result.logprobs.top_tokens[1].tolist() == [int(expected.argmax())]


def test_a_step_without_segments_still_changes_the_page_table(folder: Path) -> None:
    runner, steps = made(folder), Steps()
    result = execute(runner, steps.batch(admit={3: GREEDY}))
    assert len(result.tokens) == 0
    assert runner.page_table[3].tolist() == [31, 30, 29, 28, 27, 26, 25, 24]


def test_reset_forgets_slots_and_steps_in_flight(folder: Path) -> None:
    runner, steps = made(folder), Steps()
    lost = runner.launch(steps.batch((0, 0, PROMPTS[0], True), admit={0: SamplingParameters(presence_penalty=2.0)}))
    runner.reset()
    with pytest.raises(OutOfOrder):
        runner.collect(lost)
    assert not runner.page_table.any()
    result = execute(runner, steps.batch((0, 0, PROMPTS[0], True), admit={0: GREEDY}))
    assert result.tokens.tolist() == greedy_reference(PROMPTS[0], 1)


def test_steps_are_collected_once_and_in_order(folder: Path) -> None:
    runner, steps = made(folder), Steps()
    first = runner.launch(steps.batch((0, 0, [1, 2], True), admit={0: GREEDY}))
    second = runner.launch(steps.batch((0, 2, None, True)))
    with pytest.raises(OutOfOrder, match="oldest step in flight is 1"):
        runner.collect(second)
    runner.collect(first)
    with pytest.raises(OutOfOrder):
        runner.collect(first)
    runner.collect(second)


GOOD = Steps().batch((0, 0, [1, 2, 3], True), (1, 5, None, True), admit={0: GREEDY})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"slots": int32(0, 4)}, "a slot is not below 4"),
        ({"slots": int32(0, -1)}, "a slot is not below 4"),
        ({"slots": int32(1, 1)}, "two segments"),
        ({"starts": int32(0)}, "starts has 1 entries for 2"),
        ({"starts": int32(-1, 5)}, "negative start"),
        ({"starts": int32(30, 5)}, "beyond the context 32"),
        ({"lengths": int32(3, 0)}, "empty segment"),
        ({"tokens": int32(1, 2)}, "2 tokens for 3 positions"),
        pytest.param({"lengths": int32(3, 2)}, "3 tokens for 4 positions", id="a run without its draft"),
        pytest.param({"tokens": int32(1, 2, 3, 4)}, "4 tokens for 3 positions", id="a draft without a run"),
        ({"pages": int32(*range(7), 32)}, "a page is not below 32"),
        ({"pages": int32(1)}, "differ in length"),
        ({"page_slots": int32(*[4] * 8)}, "a page slot is not below 4"),
        ({"page_indices": int32(*range(1, 9))}, "a page index is not below 8"),
        ({"admitted": (SlotAssignment(4, GREEDY, 0, int32(), 0),)}, "admitted slot 4"),
    ],
)
def test_a_batch_that_breaks_the_contract_changes_nothing(changes: dict[str, Any], reason: str, folder: Path) -> None:
    runner = made(folder)
    before = runner.kv.data.clone()
    with pytest.raises(InvalidBatch, match=reason):
        runner.launch(msgspec.structs.replace(GOOD, **changes))
    assert not runner.page_table.any()
    assert torch.equal(runner.kv.data, before)
    runner.launch(GOOD)  # and the batch itself was good


FOREIGN: dict[str, tuple[list[int], SamplingParameters, list[int]]] = {
    "a token of its prompt": ([9, VOCABULARY, 3], GREEDY, []),
    "a negative token": ([-2, 3], GREEDY, []),
    "its history": ([9, 3], PENALISED, [9, VOCABULARY]),
    "a stop token": ([9, 3], SamplingParameters(temperature=0.0, stop_token_ids=(VOCABULARY,), min_new_tokens=3), []),
    "a bias": ([9, 3], SamplingParameters(temperature=0.0, logit_bias={VOCABULARY + 7: 1.0}), []),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_token_that_the_model_does_not_have_ends_its_own_request_alone(name: str, folder: Path) -> None:
    tokens, sampling, history = FOREIGN[name]
    runner, steps = made(folder), Steps()
    good = execute(made(folder), Steps().batch((0, 0, [5, 6, 7], True), admit={0: GREEDY})).tokens[0]
    admitted = steps.batch(admit={1: sampling}, history=history)
    assert execute(runner, admitted).unusable is None
    both = execute(runner, steps.batch((0, 0, [5, 6, 7], True), (1, 0, tokens, True), admit={0: GREEDY}))
    assert both.unusable is not None
    assert both.unusable.tolist() == [False, True]
    assert both.tokens[0] == good
    after = execute(runner, steps.batch((0, 3, None, True), (1, len(tokens), None, True)))
    assert after.unusable is not None
    assert after.unusable.tolist() == [False, True]
    # Who has the slot next is not blamed for it.
    assert execute(runner, steps.batch((1, 0, [5, 6, 7], True), admit={1: GREEDY})).unusable is None


def test_in_a_step_with_drafts_a_foreign_token_hides_no_other_request_that_has_no_scores(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, steps = made(folder, backend="native"), Steps()
    admit = dict.fromkeys((0, 1), GREEDY)
    execute(runner, steps.batch((0, 0, [1, 2], True), (1, 0, [3, VOCABULARY], True), admit=admit))
    forward = runner.backend.forward

    def spoilt(inputs: ForwardInputs) -> torch.Tensor:
        logits = forward(inputs)
        logits[: inputs.lengths[0]] = float("nan")  # of slot 0
        return logits

    monkeypatch.setattr(runner.backend, "forward", spoilt)
    monkeypatch.setattr(runner, "_greedy_backend", None)
    batch = steps.batch((0, 2, None, True), (1, 2, None, True))
    drafted = msgspec.structs.replace(batch, lengths=int32(2, 1), tokens=int32(5))
    result = execute(runner, drafted)
    assert result.unusable is not None
    assert result.unusable.tolist() == [True, True]


class FusedBackend:
    """A backend with a greedy head, over another one; remembers how it was called."""

    name = "fused"
    greedy_masks = False
    device = torch.device("cpu")

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.calls: list[str] = []

    def forward(self, inputs: ForwardInputs) -> torch.Tensor:
        self.calls.append("forward")
        logits: torch.Tensor = self.inner.forward(inputs)
        return logits

    def hidden(self, inputs: ForwardInputs) -> torch.Tensor:
        self.calls.append("hidden")
        states: torch.Tensor = self.inner.hidden(inputs)
        return states

    def forward_greedy(self, inputs: ForwardInputs) -> torch.Tensor:
        self.calls.append("greedy")
        return self.inner.forward(inputs).argmax(-1).int()

    def named_weights(self) -> Mapping[str, torch.Tensor]:
        named: Mapping[str, torch.Tensor] = self.inner.named_weights()
        return named

    def pack_adapter(self, adapter: Adapter) -> PackedAdapter:
        packed: PackedAdapter = self.inner.pack_adapter(adapter)
        return packed


def test_a_fused_greedy_head_serves_steps_that_are_all_plainly_greedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = made(folder)
    fused = FusedBackend(plain.backend)
    assert isinstance(fused, GreedyBackend)
    monkeypatch.setattr("pawl.gpu.runner.select_backend", lambda *_, **__: fused)
    runner, steps = made(folder), Steps()
    runner.kv.full = plain.kv.full
    short = SamplingParameters(temperature=0.0, min_new_tokens=1, stop_token_ids=(0,))
    tokens = [
        *execute(runner, steps.batch((0, 0, PROMPTS[0], True), admit={0: short})).tokens.tolist(),
        *execute(runner, steps.batch((0, 7, None, True))).tokens.tolist(),
        *execute(runner, steps.batch((0, 8, None, True))).tokens.tolist(),
    ]
    assert fused.calls == ["forward", "greedy", "greedy"], "the first step may not draw a stop token"
    assert tokens == greedy_reference(PROMPTS[0], 3)


def test_native_on_a_dtype_it_does_not_have_is_an_honest_error(folder: Path) -> None:
    with pytest.raises(BackendUnavailable, match="float16"):
        made(folder, dtype=torch.float16, backend="native")


def test_a_backend_nobody_knows_is_refused(folder: Path) -> None:
    with pytest.raises(BackendUnavailable, match="known: auto, torch, native"):
        made(folder, backend="tpu")


@pytest.mark.parametrize("device", DEVICES)
def test_only_a_device_of_its_own_computes_after_launch_returns(folder: Path, device: str) -> None:
    runner = made(folder, device)
    assert runner.depth == (device == "cuda")
    assert runner.backend.name == "torch"
