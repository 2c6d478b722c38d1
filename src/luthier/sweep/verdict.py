"""Is the best trial better than the recipe as it was given? Told on rows that chose nothing.

The lowest of many validation losses is low by luck too, so that a test on the rows that chose would
find an improvement in pure noise. The half that judges took no part: early stopping, pruning and the
choice of weights and of the trial all went by the other. One comparison on it needs no correction.
Where a sweep goes on after it was judged, and another trial is the best, the same rows are used again;
the interval is then widened by Bonferroni's correction for the number of trials that they judged.
"""

from luthier.data.tokens import TokenRow
from luthier.evaluate.likelihood import RowLoss, row_losses
from luthier.evaluate.statistics import CONFIDENCE, mean_interval, paired_test
from luthier.events import OnEvent, ignore
from luthier.files import write_jsonl
from luthier.kernels.separation import rows_stay_apart
from luthier.models.tuned import load_tuned
from luthier.perplexity import perplexity
from luthier.records.sweep import SweepVerdict
from luthier.run import Run
from luthier.sweep.folder import SweepFolder


def judge(
    folder: SweepFolder,
    default: Run,
    best: Run,
    rows: list[TokenRow],
    looks: int,
    on_event: OnEvent = ignore,
) -> SweepVerdict:
    """Compare two finished trials row by row, and keep the losses.

    Args:
        looks: trials that these rows judged so far, this one included.

    Raises:
        UserError: weights of one are gone or damaged.
    """
    before, after = (
        _losses(run, rows, f"judging, trial {run.root.name}", on_event) for run in (default, best)
    )
    tokens = [loss.tokens for loss in before.values()]
    first, second = ([loss.mean for loss in side.values()] for side in (before, after))
    confidence = 1 - (1 - CONFIDENCE) / looks
    test = paired_test(first, second, tokens, higher_is_better=False, confidence=confidence)
    write_jsonl(
        folder.judged_path,
        (
            {"row": row, "tokens": loss.tokens, "default": loss.mean, "best": after[row].mean}
            for row, loss in before.items()
        ),
    )
    return SweepVerdict(
        trial=int(best.root.name),
        default=mean_interval(first, tokens),
        best=mean_interval(second, tokens),
        test=test,
        ratio=perplexity(test.difference),
        looks=looks,
    )


def _losses(run: Run, rows: list[TokenRow], task: str, on_event: OnEvent) -> dict[str, RowLoss]:
    """The loss of each conversation by its place; one that was cut into several rows is one."""
    model = load_tuned(run, on_event=on_event).tuned
    found = row_losses(model, rows, packed=rows_stay_apart(model), task=task, on_event=on_event)
    whole: dict[str, RowLoss] = {}
    for row, loss in zip(rows, found, strict=True):
        place = str(row.origin)
        before = whole.get(place, RowLoss(0.0, 0))
        whole[place] = RowLoss(before.sum + loss.sum, before.tokens + loss.tokens)
    return whole
