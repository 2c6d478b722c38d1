"""What is behind the pages: thinning, marks, preferences, the form."""

import json
import random
from pathlib import Path

import pytest

from luthier.board.colours import DARK
from luthier.board.curves import CHARTS, options, points, thinned
from luthier.board.differences import differences
from luthier.board.folders import Folders
from luthier.board.preferences import prefer
from luthier.records import MetricsLine


def test_thinning_keeps_ends_order_and_every_spike() -> None:
    draw = random.Random(0)
    found = [(n, draw.random()) for n in range(10_000)]
    found[4321] = (4321, 50.0)
    found[8765] = (8765, -50.0)
    kept = thinned(found, 400)
    assert len(kept) <= 400
    assert (kept[0], kept[-1]) == (found[0], found[-1])
    assert {(4321, 50.0), (8765, -50.0)} < set(kept)
    assert kept == sorted(kept) and set(kept) <= set(found)
    assert thinned(found[:7], 400) == found[:7]


def test_a_value_that_is_no_number_is_a_gap() -> None:
    lines = [
        MetricsLine(step=n, epoch=0, memory_bytes=2**30, seconds=1, loss=loss)
        for n, loss in enumerate((1.0, float("nan"), float("inf"), None, 0.5))
    ]
    assert points(lines, CHARTS[0].lines[0].value) == [(0, 1.0), (4, 0.5)]
    assert [y for _, y in points(lines, CHARTS[-1].lines[0].value)] == [1.0] * 5


def test_names_of_runs_are_values_of_a_chart_and_never_its_keys() -> None:
    """A key that begins with a colon is JavaScript to the component library."""
    name = ":onclick<img src=x onerror=alert(1)>"
    drawn = options([(name, [(1, 2.0)], "#fff"), (name, [(1, 2.0)], "#fff")], DARK)

    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*(keys(inner) for inner in value.values()))
        return set().union(*(keys(inner) for inner in value)) if isinstance(value, list) else set()

    assert name not in keys(drawn)
    assert {key for key in keys(drawn) if key.startswith(":")} == {":valueFormatter"}
    assert drawn["tooltip"]["renderMode"] == "richText"


@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        ("SELECT a FROM t", "SELECT b, a FROM t WHERE x"),
        ("", "some text"),
        ("same", "same"),
        ("<b>one</b>\n two", "<i>one</i>\n two"),
        ("x " * 5000, "y " * 5000),
    ],
)
def test_marked_pieces_join_to_the_texts(base: str, tuned: str) -> None:
    left, right = differences(base, tuned)
    assert "".join(text for text, _ in left) == base
    assert "".join(text for text, _ in right) == tuned
    if base == tuned:
        assert not any(changed for _, changed in left + right)


def test_the_words_that_differ_are_marked() -> None:
    left, right = differences("the cat sat", "the dog sat")
    assert left == [("the ", False), ("cat", True), (" sat", False)]
    assert right == [("the ", False), ("dog", True), (" sat", False)]


def test_a_preference_is_a_row_of_prompt_chosen_and_rejected(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    prompt = [{"role": "user", "content": "q"}]
    assert prefer(folders, [prompt, prompt, prompt], ["bad", "good", "good"], 1) == 1
    other = [{"role": "user", "content": "another"}]
    assert prefer(folders, [prompt, other], ["bad", "good"], 0) == 0
    rows = [json.loads(line) for line in folders.preferences.read_text().splitlines()]
    assert rows == [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        }
    ]
