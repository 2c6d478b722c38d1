"""The advisor's rules against measured scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from luthier.advise.answers import Goal
from luthier.compare.prompts import Approach
from luthier.compare.rules import advised, check_rules
from luthier.evaluate.metrics import Metric

GOOD, BAD, MIXED = [1.0] * 20, [0.0] * 20, [1.0, 0.0] * 10


def metric(name: str, higher: bool = True) -> Metric:
    return Metric(name, name.upper(), lambda _answer, _row: 0.0, higher_is_better=higher)


def check(
    scores: Mapping[str, Mapping[Approach, Sequence[float]]],
    goals: Mapping[str, Goal] | None = None,
) -> list[dict[str, Any]]:
    return check_rules([metric(name) for name in scores], scores, goals or {})


@pytest.mark.parametrize(
    ("goals", "outcome"),
    [({"facts"}, "rag"), ({"format"}, "fine-tune"), ({"facts", "format"}, "hybrid")],
)
def test_the_advice_by_goals_alone(goals: set[Goal], outcome: str) -> None:
    assert advised(goals).outcome == outcome


def test_confirmed_where_the_advised_one_wins() -> None:
    (rule,) = check({"f1": {"zero-shot": BAD, "rag": GOOD, "fine-tuned": MIXED}})
    assert (rule["goals"], rule["advised"], rule["verdict"]) == (["facts"], "rag", "confirmed")
    assert rule["better"] == rule["as_good"] == []
    assert rule["source"].startswith("Ovadia")


def test_contradicted_where_another_wins() -> None:
    (rule,) = check({"json_schema": {"rag": GOOD, "fine-tuned": MIXED, "zero-shot": BAD}})
    assert (rule["goals"], rule["advised"]) == (["format"], "fine-tuned")
    assert (rule["verdict"], rule["better"]) == ("contradicted", ["rag"])


def test_undecided_where_nothing_tells_them_apart() -> None:
    (rule,) = check({"f1": {"rag": MIXED, "few-shot": MIXED}})
    assert (rule["verdict"], rule["as_good"]) == ("undecided", ["few-shot"])


def test_several_goals_are_judged_together_too() -> None:
    rules = check(
        {
            "fact": {"rag": GOOD, "fine-tuned": BAD, "hybrid": GOOD},
            "form": {"rag": BAD, "fine-tuned": GOOD, "hybrid": GOOD},
        },
        {"form": "format"},
    )
    assert [(r["of"], r["advised"], r["verdict"]) for r in rules] == [
        ("FACT", "rag", "confirmed"),
        ("FORM", "fine-tuned", "confirmed"),
        ("all of them", "hybrid", "confirmed"),
    ]


def test_less_can_be_better() -> None:
    scores: dict[str, dict[Approach, list[float]]] = {"cost": {"rag": BAD, "zero-shot": GOOD}}
    (rule,) = check_rules([metric("cost", higher=False)], scores, {})
    assert rule["verdict"] == "confirmed"


def test_no_rule_without_the_advised_approach() -> None:
    assert check({"f1": {"zero-shot": GOOD, "few-shot": BAD}}) == []
    assert check({"f1": {"rag": GOOD}}) == []
