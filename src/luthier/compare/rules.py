"""What the advisor would have said, and whether the measurements confirm it."""

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.advise.answers import Answers, Goal
from luthier.advise.decide import GOOD, Decision, Outcome, decide
from luthier.compare.prompts import Approach
from luthier.evaluate.metrics import Metric
from luthier.evaluate.statistics import paired_test

_APPROACH: dict[Outcome, Approach] = {
    "few-shot": "few-shot",
    "rag": "rag",
    "fine-tune": "fine-tuned",
    "hybrid": "hybrid",
}
# What a metric measures where the user does not say.
_USUAL: dict[str, Goal] = {
    "json_valid": "format",
    "json_schema": "format",
    "sql_execution": "reasoning",
    "accuracy": "reasoning",
    "judge": "style",
}


def check_rules(
    metrics: Sequence[Metric],
    scores: Mapping[str, Mapping[Approach, Sequence[float]]],
    goals: Mapping[str, Goal],
) -> list[dict[str, Any]]:
    """For each metric, and for all together: the advised approach against each other that was tried.

    The advisor gets the metric's goal, and answers that let nothing else decide: a metric, a budget,
    one task, prompts that are not good enough, plenty of examples. By the paired test
    on the same rows: ``contradicted``, another approach is better; ``confirmed``, none is and the
    advised one beats at least one; ``undecided``, there is not enough evidence.

    Args:
        goals: what a metric measures, by its name; ``facts`` where nothing else is known.
    """
    aims: dict[str, Goal] = {
        m.name: goals.get(m.name, _USUAL.get(m.name, "facts")) for m in metrics
    }
    rules = [_check(m.label, {aims[m.name]}, [m], scores) for m in metrics]
    if len(set(aims.values())) > 1:
        rules.append(_check("all of them", set(aims.values()), metrics, scores))
    return [rule for rule in rules if rule is not None]


def advised(goals: set[Goal]) -> Decision:
    """The advisor's decision where only the goals matter."""
    decision = decide(
        Answers(
            metric=True,
            budget=True,
            tasks="one",
            few_shot="not_enough",
            goals=frozenset(goals),
            knowledge="stable",
            examples=GOOD,
            reviewed=True,
            prompts_exhausted=True,
            model="any",
            billions=0.1,
            gpu_memory=0,
            priority="balanced",
        )
    )
    assert isinstance(decision, Decision)
    return decision


def _check(
    label: str,
    goals: set[Goal],
    metrics: Sequence[Metric],
    scores: Mapping[str, Mapping[Approach, Sequence[float]]],
) -> dict[str, Any] | None:
    decision = advised(goals)
    mine = _APPROACH[decision.outcome]
    totals = _totals(metrics, scores)
    if mine not in totals or len(totals) < 2:
        return None
    others = {}
    for name, values in totals.items():
        if name != mine:
            others[name] = paired_test(values, totals[mine]).to_dict()
    verdicts = {test["verdict"] for test in others.values()}
    verdict = "undecided"
    if "worse" in verdicts:
        verdict = "contradicted"
    elif "better" in verdicts:
        verdict = "confirmed"
    deciding = [step for step in decision.path if "goals" in step.answers][-1]
    return {
        "of": label,
        "goals": sorted(goals),
        "advised": mine,
        "because": deciding.finding,
        "source": deciding.source,
        "against": others,
        "better": [name for name, test in others.items() if test["verdict"] == "worse"],
        "as_good": [name for name, test in others.items() if test["verdict"] == "no evidence"],
        "verdict": verdict,
    }


def _totals(
    metrics: Sequence[Metric], scores: Mapping[str, Mapping[Approach, Sequence[float]]]
) -> dict[Approach, list[float]]:
    """One number per row and approach, higher is better: the mean over the metrics."""
    signs = [1.0 if metric.higher_is_better else -1.0 for metric in metrics]
    columns = [scores[metric.name] for metric in metrics]
    return {
        name: [
            sum(sign * value for sign, value in zip(signs, values, strict=True)) / len(signs)
            for values in zip(*(column[name] for column in columns), strict=True)
        ]
        for name in columns[0]
    }
