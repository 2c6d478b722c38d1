"""Loss and perplexity of two sides on the same rows, with intervals over rows."""

from collections.abc import Sequence

from luthier.evaluate.likelihood import RowLoss
from luthier.evaluate.statistics import mean_interval, paired_test
from luthier.perplexity import perplexity
from luthier.records.evaluation import (
    Interval,
    MetricCompared,
    Outcome,
    PerplexityCompared,
    Ratio,
)


def compare_losses(
    base: Sequence[RowLoss], tuned: Sequence[RowLoss]
) -> tuple[MetricCompared, PerplexityCompared]:
    """The mean loss of both sides (nats per token), and its exponential.

    exp rises, so it carries the intervals of the loss over to perplexities, and that of the
    difference of losses to the ratio of perplexities: nothing is assumed twice.
    """
    tokens = [loss.tokens for loss in base]
    before, after = ([loss.mean for loss in side] for side in (base, tuned))
    first, second = mean_interval(before, tokens), mean_interval(after, tokens)
    test = paired_test(before, after, tokens, higher_is_better=False)
    loss = MetricCompared(
        label="loss", share=False, higher_is_better=False, base=first, tuned=second, test=test
    )
    return loss, PerplexityCompared(
        label="perplexity",
        share=False,
        higher_is_better=False,
        base=_exponential(first),
        tuned=_exponential(second),
        ratio=Ratio(
            ratio=perplexity(test.difference),
            low=perplexity(test.low),
            high=perplexity(test.high),
        ),
        test=Outcome(p=test.p, rows=test.rows, verdict=test.verdict),
    )


def _exponential(loss: Interval) -> Interval:
    means = {name: perplexity(getattr(loss, name)) for name in ("mean", "low", "high")}
    return loss.model_copy(update=means)
