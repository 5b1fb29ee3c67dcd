"""Graphs hold every decode step there can be, and pages get what is left of a device's memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.gpu.cuda.memory import MemoryUse, ModelDoesNotFit, graph_bytes
from pawl.gpu.cuda.shapes import GraphShapes, context_levels, row_buckets

GIB = 1 << 30


@given(st.integers(1, 2000), st.integers(1, 1 << 20), st.data())
def test_every_step_finds_the_smallest_graph_that_holds_it(
    max_rows: int, max_context: int, data: st.DataObject
) -> None:
    shapes = GraphShapes(max_rows, max_context)
    rows, longest = data.draw(st.integers(1, max_rows)), data.draw(st.integers(1, max_context))
    holding = [shape for shape in shapes if shape.rows >= rows and shape.context >= longest]
    assert shapes.find(rows, longest) == min(holding)


@given(st.integers(1, 2000), st.integers(1, 1 << 20))
def test_a_step_beyond_the_sizes_has_no_graph(max_rows: int, max_context: int) -> None:
    shapes = GraphShapes(max_rows, max_context)
    assert shapes.find(max_rows + 1, 1) is None
    assert shapes.find(1, max_context + 1) is None
    assert shapes.find(0, 1) is None


@given(st.integers(1, 2000))
def test_padding_is_a_small_part_of_a_step(max_rows: int) -> None:
    buckets = row_buckets(max_rows)
    assert list(buckets) == sorted(set(buckets))
    assert buckets[-1] == max_rows
    for rows in range(9, max_rows + 1):
        bucket = next(size for size in buckets if size >= rows)
        assert bucket - rows <= max(7, bucket // 4)


@given(st.integers(1, 1 << 20))
def test_levels_of_context_are_few_and_rise(max_context: int) -> None:
    levels = context_levels(max_context)
    assert list(levels) == sorted(set(levels))
    assert levels[-1] == max_context
    assert len(levels) <= 3


def test_the_largest_graph_is_recorded_first() -> None:
    order = list(GraphShapes(300, 40_000))
    assert order[0] == max(order) == (300, 40_000)
    assert order == sorted(order, reverse=True)
    assert len(order) == len(set(order)) == len(GraphShapes(300, 40_000))


@pytest.mark.parametrize("sizes", [(0, 10), (10, 0)])
def test_graphs_of_nothing_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="graphs for"):
        GraphShapes(*sizes)


def test_pages_get_what_weights_the_largest_step_and_graphs_leave() -> None:
    use = MemoryUse(total=100 * GIB, free=70 * GIB, step=5 * GIB, graphs=2 * GIB)
    assert use.page_budget(0.9) == 53 * GIB
    assert use.page_budget(0.5) == 13 * GIB


def test_a_model_that_does_not_fit_is_refused_with_the_numbers() -> None:
    use = MemoryUse(total=10 * GIB, free=3 * GIB, step=GIB, graphs=GIB)
    with pytest.raises(ModelDoesNotFit) as refusal:
        use.page_budget(0.9)
    assert (refusal.value.use, refusal.value.share) == (use, 0.9)
    for fact in ("10.00 GiB", "90%", "7.00 are taken", "needs 1.00", "graphs 1.00"):
        assert fact in str(refusal.value)


def test_graphs_after_the_first_cost_what_the_second_did() -> None:
    assert graph_bytes(700, 20, 11) == 900
    # The allocator may give memory back while a graph is recorded: that is no gain to count on.
    assert graph_bytes(-5, -20, 11) == 0
    assert graph_bytes(700, 20, 0) == 0
