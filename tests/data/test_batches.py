import pytest
import torch
from helpers import random_rows
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.batches import IGNORED, RowDataset, StepBatches, by_length, collate
from luthier.data.conversation import Conversation, Origin
from luthier.data.packing import best_fit_decreasing
from luthier.data.tokens import TokenRow


def token_row(*ids: int, counted: int = 1) -> TokenRow:
    mask = [False] * (len(ids) - counted) + [True] * counted
    return TokenRow(list(ids), mask, Conversation(Origin("f", 1), text="x"))


@given(st.lists(st.integers(1, 50), max_size=80))
def test_packing_loses_nothing_and_overfills_nothing(lengths: list[int]) -> None:
    bins = best_fit_decreasing(lengths, 50)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= 50 for members in bins)
    # Any-fit: at most one bin is half empty or more.
    assert sum(sum(lengths[i] for i in members) <= 25 for members in bins) <= 1


def test_packing_fills_known_bins_exactly() -> None:
    assert best_fit_decreasing([6, 4, 7, 3, 5, 5], 10) == [[2, 3], [0, 1], [4, 5]]


def test_a_row_that_fits_no_bin_is_an_error() -> None:
    with pytest.raises(ValueError, match="11 tokens does not fit 10"):
        best_fit_decreasing([11], 10)


def test_a_batch_is_its_rows_end_to_end() -> None:
    batch = collate([[token_row(5, 6, 7, counted=2)], [token_row(8, 9)]])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.labels.tolist() == [[IGNORED, 6, 7, IGNORED, 9]]
    assert batch.labels.dtype == batch.predicts.dtype == torch.int64
    assert batch.predicts.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [6, 7, 9]
    assert (batch.tokens, batch.supervised, batch.row_lengths) == (5, 3, (3, 2))
    assert batch.origins == (Origin("f", 1), Origin("f", 1))


def test_each_row_of_a_batch_can_stand_alone() -> None:
    rows = [token_row(5, 6, 7, counted=2), token_row(8, 9)]
    for row, alone in zip(rows, collate([rows]).rows(), strict=True):
        expected = collate([[row]])
        assert alone.position_ids is None
        for name in ("input_ids", "labels", "predicts"):
            assert torch.equal(getattr(alone, name), getattr(expected, name))
        assert alone.row_lengths == expected.row_lengths
        assert alone.origins == expected.origins


def by_loops(rows: list[TokenRow]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Ids, positions, labels and predicting positions as plain loops find them."""
    ids = [token for row in rows for token in row.input_ids]
    labels = [
        token if counts else IGNORED
        for row in rows
        for token, counts in zip(row.input_ids, row.supervised, strict=True)
    ]
    positions = [position for row in rows for position in range(len(row))]
    return ids, positions, labels, [i - 1 for i, label in enumerate(labels) if label != IGNORED]


def test_a_batch_of_arrays_is_that_of_plain_loops() -> None:
    rows = random_rows(60, 5)
    for count in (1, 2, 7, 60):
        batch = collate([[row] for row in rows[:count]])
        tensors = (batch.input_ids[0], batch.position_ids[0], batch.labels[0], batch.predicts)  # type: ignore[index]
        for made, expected in zip(tensors, by_loops(rows[:count]), strict=True):
            assert made.dtype == torch.int64
            assert made.tolist() == expected
        assert batch.row_lengths == tuple(len(row) for row in rows[:count])


def steps_of(epoch: int, skipped: int = 0) -> list[list[list[int]]]:
    """Row numbers by step and micro-batch: eleven rows, two a micro-batch, four micro-batches a step."""
    rows = [token_row(n, n) for n in range(11)]
    steps = StepBatches(RowDataset(rows, 10, packing=False), 2, 4, 42, collate)
    assert (steps.micro_batches, steps.steps_per_epoch) == (6, 2)
    return [
        [batch.input_ids[0, ::2].tolist() for batch in batches]
        for batches in steps.epoch(epoch, skipped)
    ]


def test_an_epoch_sees_every_row_once_and_the_last_step_may_be_small() -> None:
    first, second = steps_of(0)
    assert [len(first), len(second)] == [4, 2]
    assert sorted(n for step in (first, second) for batch in step for n in batch) == list(range(11))


def test_the_order_is_that_of_the_seed_and_the_epoch() -> None:
    assert steps_of(0) == steps_of(0)
    assert steps_of(0) != steps_of(1)
    torch.manual_seed(7)
    assert steps_of(1, skipped=1) == steps_of(1)[1:]


def test_dataset_with_and_without_packing() -> None:
    rows = [token_row(*range(n)) for n in (6, 4, 7, 3)]
    assert [len(item) for item in RowDataset(rows, 10, packing=False).items] == [1, 1, 1, 1]
    packed = RowDataset(rows, 10, packing=True)
    assert len(packed) == 2
    assert sorted(len(row) for item in packed.items for row in item) == [3, 4, 6, 7]


def test_batches_by_length_hold_every_row() -> None:
    rows = [token_row(*range(n)) for n in (6, 4, 7, 3, 5)]
    assert [[len(r) for r in batch] for batch in by_length(rows, 2)] == [[3, 4], [5, 6], [7]]
