"""Kept, some forgetting, or forgot: by what was measured and the recipe's limits."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from luthier.recipe import EvaluateGroup

Judgement = Literal["kept", "some forgetting", "forgot"]

_VISIBLE = 0.25  # of a limit: less is no news even where it is certain


@dataclass(frozen=True)
class Forgetting:
    """The verdict and the sentences it rests on; ``limits`` are the recipe's."""

    verdict: Judgement
    reasons: tuple[str, ...]
    limits: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return asdict(self)


def judge(found: dict[str, Any], limits: EvaluateGroup) -> Forgetting:
    """The verdict on what ``probe_forgetting`` found.

    *Forgot*, where any of these is over its limit in the recipe: the accuracy lost over all items
    or in one area, the ratio of perplexities on general text, the leakage gained. A loss counts
    only where the paired test says "worse"; in an area, at its p times the number of areas
    (Bonferroni), as one area of seven would fall by chance. *Some forgetting*, where one of them is
    past a quarter of its limit. Else *kept*.
    """
    over: list[str] = []
    some: list[str] = []

    def weigh(size: float, limit: float, sentence: str) -> None:
        if size > limit:
            over.append(sentence)
        elif size > _VISIBLE * limit:
            some.append(sentence)

    lost, test = _lost(found["accuracy"])
    if test["verdict"] == "worse":
        weigh(
            lost,
            limits.max_accuracy_drop,
            f"accuracy on general questions fell by {100 * lost:.1f} points",
        )
    for area, compared in found["areas"].items():
        lost, test = _lost(compared)
        if test["verdict"] == "worse" and test["p"] * len(found["areas"]) < 0.05:
            weigh(lost, limits.max_accuracy_drop, f"{area} fell by {100 * lost:.1f} points")
    perplexity = found["text"]["perplexity"]
    if perplexity["test"]["verdict"] == "worse":
        ratio = perplexity["ratio"]["ratio"]
        weigh(
            ratio - 1,
            limits.max_perplexity_ratio - 1,
            f"perplexity on general text is {ratio:.2f} times the base's",
        )
    leakage = found["leakage"]
    gained = leakage["tuned"]["mean"] - leakage["base"]["mean"]
    weigh(
        gained,
        limits.max_leakage,
        f"{len(leakage['leaks'])} of {leakage['tuned']['rows']} unrelated answers show the training "
        "format",
    )
    verdict: Judgement = "forgot" if over else "some forgetting" if some else "kept"
    keys = ("max_accuracy_drop", "max_perplexity_ratio", "max_leakage")
    return Forgetting(verdict, (*over, *some), {key: getattr(limits, key) for key in keys})


def _lost(compared: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    return -compared["test"]["difference"], compared["test"]
