from hypothesis import given
from hypothesis import strategies as st

from luthier.data.conversation import Conversation, Origin
from luthier.data.split import (
    RunningSample,
    sample,
    sampled,
    split,
    split_key,
    without_overlap,
)


def row(question: str, answer: str = "a", line: int = 1) -> Conversation:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Conversation(Origin("f", line), messages)


@given(
    questions=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    fraction=st.floats(0, 0.9),
    seed=st.integers(0, 3),
)
def test_no_row_is_lost_and_no_prompt_crosses(
    questions: list[int], fraction: float, seed: int
) -> None:
    rows = [row(f"q{n}", f"a{i}", i) for i, n in enumerate(questions)]
    train, validation = split(rows, fraction, seed)
    assert sorted(r.origin.line for r in train + validation) == list(range(len(rows)))
    assert not {split_key(r) for r in train} & {split_key(r) for r in validation}
    if fraction > 0 and len(set(questions)) > 1:
        assert train
        assert validation
    if fraction == 0:
        assert not validation


def test_spacing_and_case_do_not_make_a_prompt_another() -> None:
    assert split_key(row("List  Files")) == split_key(row(" list files\n", "other"))
    assert split_key(row("a")) != split_key(row("b"))


def test_the_fraction_is_met_and_the_seed_chooses() -> None:
    rows = [row(f"q{i}", line=i) for i in range(200)]
    _, first = split(rows, 0.1, 1)
    _, again = split(rows, 0.1, 1)
    _, other = split(rows, 0.1, 2)
    assert len(first) == 20
    assert first == again
    assert first != other


def test_more_rows_move_few_of_the_others() -> None:
    rows = [row(f"q{i}", line=i) for i in range(400)]
    before = {r.origin.line for r in split(rows[:380], 0.1, 1)[1]}
    after = {r.origin.line for r in split(rows, 0.1, 1)[1]}
    assert len(before & after) >= 0.85 * len(before)


def test_rows_of_the_validation_file_are_not_trained_on() -> None:
    train = [row("a"), row("B "), row("c")]
    kept, dropped = without_overlap(train, [row("b", "another answer")])
    assert kept == [train[0], train[2]]
    assert dropped == [train[1]]


def test_a_sample_keeps_the_order() -> None:
    picked = sample(range(100), 10, 3)
    assert picked == sorted(picked)
    assert len(set(picked)) == 10
    assert picked == sample(range(100), 10, 3)
    assert sample([1, 2], 5, 0) == [1, 2]


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 5))
def test_a_running_sample_is_the_sample(size: int, count: int, seed: int) -> None:
    running = RunningSample(count, seed)
    taken = [index for index in range(size) if running.takes()]
    assert running.indices == list(sampled(size, count, seed))
    assert set(running.indices) <= set(taken)
    assert running.seen == size


def test_a_running_sample_takes_few_of_many() -> None:
    running = RunningSample(100, 1)
    taken = sum(running.takes() for _ in range(20_000))
    assert taken < 900  # 100 (1 + ln 200) = 630 are expected
