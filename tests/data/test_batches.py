import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.batches import IGNORED, RowDataset, by_length, collate
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
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9]]
    assert batch["labels"].dtype == batch["predicts"].dtype == torch.int64
    assert batch["predicts"].tolist() == [0, 1, 3]


def test_dataset_with_and_without_packing() -> None:
    rows = [token_row(*range(n)) for n in (6, 4, 7, 3)]
    assert [len(item) for item in RowDataset(rows, 10, packing=False).items] == [1, 1, 1, 1]
    packed = RowDataset(rows, 10, packing=True)
    assert len(packed) == 2
    assert sorted(len(row) for item in packed.items for row in item) == [3, 4, 6, 7]


def test_batches_by_length_hold_every_row() -> None:
    rows = [token_row(*range(n)) for n in (6, 4, 7, 3, 5)]
    assert [[len(r) for r in batch] for batch in by_length(rows, 2)] == [[3, 4], [5, 6], [7]]
