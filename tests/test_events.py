"""What work says of itself while it goes on."""

import pytest

from luthier.events import Event, Progress, during, tracked


def test_tracked_counts_what_was_taken_and_done_with() -> None:
    seen: list[Event] = []
    words = ["a", "bb", "ccc"]
    assert list(tracked(words, "spelling", seen.append, 6, "letters", size=len)) == words
    assert seen[0] == Progress("spelling", 0, 6, "letters")
    assert seen[1] == Progress("spelling", 1, 6, "letters")
    assert seen[-1] == Progress("spelling", 6, 6, "letters")
    assert not seen[0].finished  # type: ignore[union-attr]


def test_many_quick_pieces_make_few_events() -> None:
    seen: list[Event] = []
    assert sum(1 for _ in tracked(range(20_000), "counting", seen.append)) == 20_000
    assert seen[-1] == Progress("counting", 20_000, 20_000, "rows")
    assert len(seen) < 100


def test_work_that_is_cut_short_is_over_too() -> None:
    seen: list[Event] = []
    rows = tracked(range(10), "reading", seen.append, 10)
    next(rows)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert seen[-1] == Progress("reading", 1, 1, "rows")
    with pytest.raises(ValueError), during("loading", seen.append):
        raise ValueError
    assert seen[-2:] == [Progress("loading", 0), Progress("loading", 1, 1)]
    assert [event.finished for event in seen[-2:]] == [False, True]  # type: ignore[union-attr]
