"""Finished runs on the rows that all of them answered."""

import json
import shutil
from pathlib import Path

import pytest

from luthier.compare.side_by_side import compare_runs
from luthier.errors import UserError
from luthier.evaluate.statistics import paired_test
from luthier.run import Run

OLD = Path(__file__).parents[1] / "run-0.1"


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """A real run's folder, and the same with other answers and one row less."""
    first, second = Run(tmp_path / "first"), Run(tmp_path / "second")
    for run in (first, second):
        shutil.copytree(OLD, run.root)
    rows = [json.loads(line) for line in first.answered_rows_path.open()]
    for number in range(12):  # enough for evidence
        rows.append({**rows[0], "reference": f"more {number}"})
    first.answered_rows_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        row["scores"]["tuned"]["exact_match"] = 1.0
    second.answered_rows_path.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    return [first, second]


def test_the_rows_that_all_answered_are_paired(runs: list[Run]) -> None:
    found = compare_runs(runs)
    count = len(runs[1].answered_rows())
    assert found.rows == count
    assert [run.name for run in found.runs] == ["first", "second"]
    assert found.runs[0].against_first is None
    test = (found.runs[1].against_first or {})["exact_match"]
    assert test == paired_test([0.0] * count, [1.0] * count)
    assert test.verdict == "better"
    assert found.runs[1].scores["exact_match"].mean == 1.0


def test_runs_that_cannot_be_compared_say_why(runs: list[Run]) -> None:
    text = runs[1].answered_rows_path.read_text()
    runs[1].answered_rows_path.write_text(text.replace('"reference": "', '"reference": "other '))
    with pytest.raises(UserError, match="evaluated on different rows"):
        compare_runs(runs)
    runs[1].evaluation_path.unlink()
    with pytest.raises(UserError, match="second is not evaluated yet: luthier evaluate"):
        compare_runs(runs)
