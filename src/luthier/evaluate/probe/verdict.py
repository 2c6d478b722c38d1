"""Kept, some forgetting, or forgot: by what was measured and the recipe's limits."""

from luthier.recipe import EvaluateGroup
from luthier.records.evaluation import Compared, Judgement, ProbeFindings

_VISIBLE = 0.25  # of a limit: less is not reported even where it is certain


def judge(found: ProbeFindings, limits: EvaluateGroup) -> tuple[Judgement, tuple[str, ...]]:
    """The verdict on what the probe found, and the sentences it rests on.

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

    if found.accuracy.test.verdict == "worse":
        lost = _lost(found.accuracy)
        weigh(
            lost,
            limits.max_accuracy_drop,
            f"accuracy on general questions fell by {100 * lost:.1f} points",
        )
    for area, compared in found.areas.items():
        if compared.test.verdict == "worse" and compared.test.p * len(found.areas) < 0.05:
            lost = _lost(compared)
            weigh(lost, limits.max_accuracy_drop, f"{area} fell by {100 * lost:.1f} points")
    if found.text.perplexity.test.verdict == "worse":
        ratio = found.text.perplexity.ratio.ratio
        weigh(
            ratio - 1,
            limits.max_perplexity_ratio - 1,
            f"perplexity on general text is {ratio:.2f} times the base's",
        )
    leakage = found.leakage
    weigh(
        leakage.tuned.mean - leakage.base.mean,
        limits.max_leakage,
        f"{len(leakage.leaks)} of {leakage.tuned.rows} unrelated answers show the training format",
    )
    verdict: Judgement = "forgot" if over else "some forgetting" if some else "kept"
    return verdict, (*over, *some)


def _lost(compared: Compared) -> float:
    return -compared.test.difference
