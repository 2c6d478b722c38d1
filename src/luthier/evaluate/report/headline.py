"""What an evaluation says in a word. It loads no models' library: the list of runs asks it of each."""

from dataclasses import dataclass
from typing import Literal

from luthier.records import Evaluation
from luthier.records.evaluation import Compared, Judgement

_GROWN = 1.2  # times as long: answers that grow so are told of


@dataclass(frozen=True)
class Headline:
    """The answer in one sentence: which measures got better or worse, and what was forgotten."""

    verdict: Literal["better", "worse", "mixed", "no evidence"]
    better: list[str]
    worse: list[str]
    forgetting: Judgement | None


def headline(evaluation: Evaluation) -> Headline:
    """What the tests say together."""
    # Loss and perplexity are one measure.
    tests = [found for name, found in evaluation.metrics.items() if name != "perplexity"]
    better = [found.label for found in tests if found.test.verdict == "better"]
    worse = [found.label for found in tests if found.test.verdict == "worse"]
    return Headline(
        verdict="mixed"
        if worse and better
        else "worse"
        if worse
        else "better"
        if better
        else "no evidence",
        better=better,
        worse=worse,
        forgetting=evaluation.forgetting.verdict if evaluation.forgetting else None,
    )


def grown(lengths: Compared) -> str | None:
    """The sentence for answers that became clearly longer; None where they did not."""
    if lengths.test.low <= 0 or lengths.tuned.mean < _GROWN * lengths.base.mean:
        return None
    return (
        f"answers grew from {lengths.base.mean:.0f} to {lengths.tuned.mean:.0f} characters: preference "
        "training often teaches length. Look whether chosen answers are longer (`luthier data check`), "
        "raise objective.beta, or use the objective simpo or ipo, whose rewards are per token"
    )
