"""Findings of preference data: pairs that prefer nothing, habits of length, labels of one kind."""

from pathlib import Path
from typing import Any

from helpers import write_rows

from luthier.data.check.report import check_data


def kinds(tmp_path: Path, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    file = write_rows(tmp_path / "rows.jsonl", rows)
    return {finding["id"]: finding for finding in check_data([str(file)])["findings"]}


def pair(n: int, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": f"What is the number {n} called?", "chosen": chosen, "rejected": rejected}


def test_pairs_that_prefer_nothing_and_answers_with_their_question(tmp_path: Path) -> None:
    found = kinds(
        tmp_path,
        [
            pair(1, "one", " One "),
            pair(2, "What is the number 2 called? It is two.", "three"),
            pair(3, "three", "four"),
        ],
    )
    assert found["equal_pairs"]["count"] == 1
    assert found["leaked_prompts"]["count"] == 1
    assert "the chosen answer begins" in found["leaked_prompts"]["examples"][0]["detail"]
    assert "chosen_longer" not in found  # three pairs are no habit
    assert "unused_fields" not in found and "unused_content" not in found


def test_a_habit_of_length_is_told(tmp_path: Path) -> None:
    rows = [pair(n, f"the number {n} at length", f"{n}") for n in range(30)]
    assert (
        "longer in 100% of 30 pairs"
        in kinds(tmp_path, rows)["chosen_longer"]["examples"][0]["detail"]
    )
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    assert "chosen_shorter" in kinds(tmp_path, turned)
    mixed = [row for two in zip(rows[::2], turned[1::2], strict=True) for row in two]
    assert not {"chosen_longer", "chosen_shorter"} & kinds(tmp_path, mixed).keys()


def test_labels_of_one_kind_and_uneven_ones(tmp_path: Path) -> None:
    def rows(good: int, bad: int) -> list[dict[str, Any]]:
        return [
            {"prompt": f"Question {n // 2}?", "completion": f"answer {n}", "label": n < good}
            for n in range(good + bad)
        ]

    assert kinds(tmp_path, rows(24, 0))["one_sided_labels"]["severity"] == "error"
    found = kinds(tmp_path, rows(6, 24))
    assert "objective.desirable_weight=4" in found["uneven_labels"]["examples"][0]["detail"]
    assert "conflicting_answers" not in found  # several answers to a prompt are the point
    assert "unused_content" not in found
    even = kinds(tmp_path, rows(15, 15))
    assert not {"one_sided_labels", "uneven_labels"} & even.keys()
