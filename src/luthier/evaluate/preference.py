"""Which of two answers a model prefers, on held-out pairs, and whether its own answers grow."""

from collections.abc import Sequence

from peft import PeftModel
from transformers import PreTrainedModel

from luthier.data.tokens import TokenRow
from luthier.evaluate.likelihood import RowLoss
from luthier.evaluate.statistics import mean_interval, paired_test
from luthier.evaluate.wins import compare_lengths
from luthier.events import OnEvent, ignore
from luthier.objectives.reward import rewards_of
from luthier.records.evaluation import (
    MetricCompared,
    PreferenceFindings,
    ScoredPair,
)

PREFERS = "preference_accuracy"  # among the metrics of an evaluation


def preferred(base: Sequence[RowLoss], tuned: Sequence[RowLoss]) -> MetricCompared:
    """How often each side finds the chosen answer likelier, per token, than the rejected one."""
    sides = [
        [float(chosen.mean < rejected.mean) for chosen, rejected in _pairs(losses)]
        for losses in (base, tuned)
    ]
    return MetricCompared(
        label="prefers chosen answer",
        share=True,
        higher_is_better=True,
        base=mean_interval(sides[0]),
        tuned=mean_interval(sides[1]),
        test=paired_test(*sides),
    )


def findings(
    base: Sequence[RowLoss], tuned: Sequence[RowLoss], answers: tuple[list[str], list[str]]
) -> PreferenceFindings:
    """What training did to pairs: the reward of an answer is log p_tuned - log p_base of all of it.

    Args:
        base, tuned: of chosen and rejected rows by turns.
        answers: that both sides generated; none, where they were not asked.
    """
    gained = [before.sum - after.sum for before, after in zip(base, tuned, strict=True)]
    margins = [
        chosen - rejected for chosen, rejected in zip(gained[::2], gained[1::2], strict=True)
    ]
    return PreferenceFindings(
        pairs=len(margins),
        accuracy=mean_interval([float(margin > 0) for margin in margins]),
        margin=mean_interval(margins),
        chosen=mean_interval(gained[::2]),
        rejected=mean_interval(gained[1::2]),
        lengths=compare_lengths(*answers) if answers[0] else None,
    )


def score_pairs(
    model: PreTrainedModel | PeftModel, rows: Sequence[TokenRow], on_event: OnEvent = ignore
) -> tuple[PreferenceFindings, list[ScoredPair]]:
    """What a reward model makes of chosen and rejected rows by turns, all together and pair by pair."""
    found = rewards_of(model, rows, together=2, task="rewards of pairs", on_event=on_event)
    pairs = [
        ScoredPair(row=str(row.origin), chosen=chosen, rejected=rejected)
        for row, chosen, rejected in zip(rows[::2], found[::2], found[1::2], strict=True)
    ]
    findings = PreferenceFindings(
        pairs=len(pairs),
        accuracy=mean_interval([float(pair.is_right) for pair in pairs]),
        margin=mean_interval([pair.chosen - pair.rejected for pair in pairs]),
        chosen=mean_interval(found[::2]),
        rejected=mean_interval(found[1::2]),
        lengths=None,
    )
    return findings, pairs


def _pairs(losses: Sequence[RowLoss]) -> list[tuple[RowLoss, RowLoss]]:
    return list(zip(losses[::2], losses[1::2], strict=True))
