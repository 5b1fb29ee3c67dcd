"""The ghost by itself: it says what the oracle says for any batches, and nothing that is wrong with memory passes."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pawl.gpu.batches import InvalidBatch
from pawl.gpu.ghost.language import END_TOKEN, PIECES, VOCABULARY_SIZE
from pawl.gpu.ghost.memory import GhostFault
from pawl.gpu.ghost.oracle import expected, expected_pages, mixed
from pawl.gpu.ghost.runner import PlannedFailure
from pawl.gpu.sampling.mixing import mix64
from pawl.lifecycle.step import Int32s
from pawl.memory.partners import NO_PAGE
from tests.gpu.ghost_rows import CONTEXT, PAGE, Rows, int32s, prompt_of


@given(
    lengths=st.lists(st.integers(1, 40), min_size=3, max_size=3),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    window=st.sampled_from([None, 1, 5, 16]),
)
def test_any_chunks_in_any_company_give_the_tokens_of_the_oracle(
    lengths: list[int], chunks: list[int], window: int | None
) -> None:
    rows = Rows(window=window)
    prompts = [prompt_of(slot, length) for slot, length in enumerate(lengths)]
    for slot in range(3):
        rows.run(rows.admission(slot))
    turn = 0
    while min(len(output) for output in rows.output) < 10:
        segments: list[tuple[int, list[int] | None, bool]] = []
        for slot, prompt in enumerate(prompts):
            done, chunk = rows.length[slot], chunks[(turn + slot) % len(chunks)]
            if done < len(prompt):
                segments.append((slot, prompt[done : done + chunk], done + chunk >= len(prompt)))
            elif done < CONTEXT:
                segments.append((slot, None, True))
        rows.run(rows.batch(segments))
        turn += 1
    for prompt, output in zip(prompts, rows.output, strict=True):
        assert output == expected(prompt, len(output))
    assert rows.ghost.faults == []


def test_other_prompts_give_other_tokens() -> None:
    whole = list(b"The quick brown fox")
    outputs = {tuple(expected(whole, 12))}
    for place in range(len(whole)):
        outputs.add(tuple(expected([*whole[:place], whole[place] ^ 1, *whole[place + 1 :]], 12)))
    swapped = whole[:4] + whole[8:12] + whole[4:8] + whole[12:]
    assert len(outputs | {tuple(expected(swapped, 12)), tuple(expected(whole[1:], 12))}) == len(whole) + 3


# ---- what must not pass ----


def give(rows: Rows, slot: int, index: int, page: int) -> dict[str, Int32s]:
    """Changes of a batch after which page `index` of `slot` is `page`."""
    changes = {"page_slots": int32s([slot]), "page_indices": int32s([index]), "pages": int32s([page])}
    return changes | ({} if rows.window is None else {"window_pages": int32s([rows.pages[slot][::-1][index]])})


def wrong_page(rows: Rows) -> None:
    rows.decode(0, 1, **give(rows, 0, 1, int(rows.pages[1][1])))


def swapped_pages(rows: Rows) -> None:
    first = give(rows, 0, 0, int(rows.pages[0][1]))
    second = give(rows, 0, 1, int(rows.pages[0][0]))
    rows.decode(0, **{name: np.concatenate((first[name], second[name])) for name in first})


def stale_page(rows: Rows) -> None:
    """Another request has been given a page of slot 0 and writes its own prompt there."""
    rows.run(rows.admission(2))
    rows.run(rows.batch([(2, prompt_of(9, PAGE), True)], **give(rows, 2, 0, int(rows.pages[0][0]))))
    rows.decode(0)


def page_never_written(rows: Rows) -> None:
    rows.decode(0, **give(rows, 0, 1, int(rows.pages[2][-1])))


def no_page_at_all(rows: Rows) -> None:
    rows.ghost.memory.page_table[0, 1] = NO_PAGE
    rows.decode(0)


def no_page_to_write(rows: Rows) -> None:
    rows.ghost.memory.page_table[0, rows.length[0] // PAGE] = NO_PAGE
    rows.decode(0)


def swapped_rows(rows: Rows) -> None:
    batch = rows.batch([(0, None, True), (1, None, True)])
    rows.run(msgspec.structs.replace(batch, starts=batch.starts[::-1].copy()))


def swapped_tables(rows: Rows) -> None:
    """Both rows whole, of the same length: only the slots know that they are not their own."""
    rows.ghost.memory.page_table[[0, 2]] = rows.ghost.memory.page_table[[2, 0]]
    rows.decode(0)


def skipped_position(rows: Rows) -> None:
    rows.length[0] += 1
    rows.decode(0)


def position_twice(rows: Rows) -> None:
    rows.length[0] -= 1
    rows.decode(0)


def lost_write(rows: Rows) -> None:
    page, offset = rows.pages[0][1], 2
    rows.ghost.memory.store.data[page, offset] = 0
    rows.ghost.memory.store.refresh(int32s([page]))
    rows.decode(0)


def flipped_bit(rows: Rows) -> None:
    rows.ghost.corrupt(int(rows.pages[0][0]), 3)
    rows.decode(0)


def two_writers_of_a_page(rows: Rows) -> None:
    """Slots 0 and 2 are both given a page that is new to them, the same one."""
    page = int(rows.pages[1][-1])
    index = rows.length[0] // PAGE + 1
    while rows.length[0] < index * PAGE:
        rows.decode(0, 2)
    first, second = give(rows, 0, index, page), give(rows, 2, index, page)
    rows.decode(0, 2, **{name: np.concatenate((first[name], second[name])) for name in first})


def prefix_of_somebody_else(rows: Rows) -> None:
    """A newcomer is given pages of two requests as if they were one prefix."""
    rows.run(rows.admission(2))
    mine, other = give(rows, 2, 0, int(rows.pages[0][0])), give(rows, 2, 1, int(rows.pages[1][1]))
    rows.length[2] = 2 * PAGE
    changes = {name: np.concatenate((mine[name], other[name])) for name in mine}
    rows.run(rows.batch([(2, [1, 2], True)], **changes))


def prefix_not_yet_written(rows: Rows) -> None:
    rows.run(rows.admission(2))
    rows.length[2] = CONTEXT - PAGE
    rows.run(rows.batch([(2, [1, 2], True)]))


def newcomer_without_a_token(rows: Rows) -> None:
    rows.run(rows.admission(0))
    rows.decode(0)


def read_after_a_reset(rows: Rows) -> None:
    rows.ghost.reset()
    rows.run(rows.admission(0))
    rows.length[0] = 9
    rows.run(rows.batch([(0, [7], True)]))


DEFECTS: dict[Callable[[Rows], None], str] = {
    wrong_page: "is not what the slot",
    swapped_pages: "begins with another position",
    stale_page: "begins with another position|is not what the slot",
    page_never_written: "begins with another position",
    no_page_at_all: "no page to read",
    no_page_to_write: "no page to write to",
    swapped_rows: "has computed",
    swapped_tables: "is not what the slot",
    skipped_position: "has computed",
    position_twice: "has computed",
    lost_write: "is not what the slot",
    flipped_bit: "is not what the slot",
    two_writers_of_a_page: "is not what the slot",
    prefix_of_somebody_else: "prefix is broken",
    prefix_not_yet_written: "prefix is broken",
    newcomer_without_a_token: "no token to go on with",
    read_after_a_reset: "prefix is broken",
}


def at_work(window: int | None = None) -> Rows:
    """Three rows that have computed 9, 13 and 9 positions."""
    rows = Rows(window=window)
    for slot, length in enumerate((9, 13, 9)):
        rows.prefill(slot, prompt_of(slot, length))
    return rows


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_what_is_wrong_with_memory_is_a_fault(defect: Callable[[Rows], None], window: int | None) -> None:
    rows = at_work(window)
    reason = DEFECTS[defect] + ("" if window is None else "|window page")
    with pytest.raises(GhostFault, match=reason) as caught:
        defect(rows)
    assert rows.ghost.faults == [caught.value]


def test_rows_without_a_defect_have_no_fault() -> None:
    rows = at_work()
    rows.decode(0, 1, 2)
    rows.decode(2, 0)
    assert rows.ghost.faults == []
    assert rows.output[0] == expected(prompt_of(0, 9), 3)


def somebody_elses_window_page(rows: Rows) -> None:
    rows.ghost.memory.window_table[0, 2] = rows.ghost.memory.window_table[1, 2]


def window_page_freed_too_early(rows: Rows) -> None:
    rows.ghost.memory.window_table[0, 1] = NO_PAGE


def window_page_used_again_too_early(rows: Rows) -> None:
    """A newcomer gets a window page that is still in the window of slot 0."""
    rows.run(rows.admission(2))
    changes = give(rows, 2, 0, int(rows.pages[2][0])) | {"window_pages": rows.ghost.memory.window_table[0, 1:2].copy()}
    rows.run(rows.batch([(2, prompt_of(9, 2), True)], **changes))


def flipped_bit_in_a_window(rows: Rows) -> None:
    rows.ghost.corrupt(int(rows.ghost.memory.window_table[0, 1]), 1, in_window=True)


@pytest.mark.parametrize(
    "defect",
    [
        somebody_elses_window_page,
        window_page_freed_too_early,
        window_page_used_again_too_early,
        flipped_bit_in_a_window,
    ],
)
def test_what_is_wrong_with_a_window_is_a_fault(defect: Callable[[Rows], None]) -> None:
    rows = at_work(window=6)
    defect(rows)
    with pytest.raises(GhostFault, match="window page"):
        rows.decode(0)


def test_pages_behind_every_window_may_be_anything() -> None:
    rows = at_work(window=6)
    rows.ghost.memory.window_table[0, 0] = NO_PAGE
    rows.ghost.memory.window_table[1, 0] = rows.ghost.memory.window_table[0, 1]
    rows.decode(0, 1)
    assert rows.output[0] == expected(prompt_of(0, 9), 2)


def test_a_window_ends_exactly_where_it_should() -> None:
    """With 9 positions and a window of 6, the query at 9 reads from position 4: page 1 is its first, and 0 is not."""
    for window, page in ((6, 1), (7, 0)):
        rows = at_work(window)
        rows.ghost.memory.window_table[0, 0] = NO_PAGE
        if page:
            rows.decode(0)
        else:
            with pytest.raises(GhostFault, match="position 0: there is no window page"):
                rows.decode(0)


def test_every_query_of_a_chunk_reads_its_own_window() -> None:
    """The first of six queries, at 9, reads from position 4; the last one, at 14, from 9, which is another page."""
    rows = at_work(window=6)
    rows.ghost.corrupt(int(rows.ghost.memory.window_table[0, 1]), in_window=True)
    with pytest.raises(GhostFault, match="position 4: the window page"):
        rows.run(rows.batch([(0, [1, 2, 3, 4, 5, 6], True)]))


def test_a_batch_that_breaks_the_contract_is_refused_and_changes_nothing() -> None:
    rows = at_work()
    with pytest.raises(InvalidBatch):
        rows.ghost.launch(rows.batch([(0, [VOCABULARY_SIZE], True)]))
    rows.decode(0)
    assert rows.output[0] == expected(prompt_of(0, 9), 2)


def test_it_fails_when_told_to_and_only_then() -> None:
    rows = at_work()
    rows.ghost.fail_at = {rows.step}
    with pytest.raises(PlannedFailure):
        rows.decode(0)
    rows.decode(0)
    assert rows.ghost.faults == []


# ---- pages that travel ----


def test_a_prefix_that_was_copied_out_goes_on_in_another_ghost() -> None:
    prompt = prompt_of(4, 12)
    source, target = Rows(), Rows()
    source.prefill(0, prompt)
    pages = int32s(source.pages[0][:3])
    blocks = source.ghost.read_pages(pages)
    assert blocks.shape == (3, source.ghost.page_bytes)
    assert (blocks == expected_pages(prompt, PAGE)).all()
    target.ghost.write_pages(int32s(target.pages[1][:3]), blocks)
    target.run(target.admission(1))
    target.length[1] = 12
    target.run(target.batch([(1, [5], True)]))
    assert target.output[1] == expected([*prompt, 5], 1)


def test_blocks_of_another_shape_are_refused_and_nothing_is_written() -> None:
    rows = at_work()
    before = rows.ghost.memory.store.data.copy()
    with pytest.raises(ValueError, match="uint8"):
        rows.ghost.write_pages(int32s([0]), np.zeros((1, 8), np.uint8))
    assert (rows.ghost.memory.store.data == before).all()
    with pytest.raises(ValueError, match="window store"):
        at_work(window=6).ghost.read_pages(int32s([0]))


# ---- what it says ----


def text_of(tokens: list[int]) -> bytes:
    return b"".join(bytes([token]) if token < 256 else PIECES[token - 256] for token in tokens)


def test_it_says_printable_text_with_characters_of_several_tokens() -> None:
    tokens = expected(list(b"Tell me"), 2000)
    text = text_of(tokens).decode(errors="ignore")
    assert len(text.encode()) >= len(text_of(tokens)) - 3, "only the last character may be cut"
    assert all(character.isprintable() or character == "\n" for character in text if ord(character) < 128)
    assert {len(character.encode()) for character in text} == {1, 2, 3, 4}


def test_the_end_token_is_never_the_likeliest() -> None:
    assert END_TOKEN not in expected(list(b"Tell me"), 2000)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
def test_the_oracle_mixes_as_the_ghost_does(words: list[int]) -> None:
    assert mix64(np.array(words, np.uint64)).tolist() == [mixed(word) for word in words]
