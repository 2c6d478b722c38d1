"""A sweep in words and as a table, for the terminal and the page alike."""

from typing import Any

from luthier.compare.tables import Table, duration
from luthier.recipe.keys import yaml_value
from luthier.records.sweep import Sweep, SweepTrial

_ORDER = ("finished", "pruned", "failed", "running")


def ordered(sweep: Sweep) -> list[SweepTrial]:
    """The trials, the best first."""
    return sorted(
        sweep.trials,
        key=lambda t: (
            _ORDER.index(t.state),
            float("inf") if t.loss is None else t.loss,
            t.number,
        ),
    )


def trials_table(sweep: Sweep) -> Table:
    """One row per trial: what it had, what it reached."""
    keys = [dimension.key for dimension in sweep.space]
    head = ["trial", "", *map(short, keys), "validation loss", "time"]
    rows = [
        [
            str(trial.number),
            mark(sweep, trial),
            *(value_text(trial.values.get(key)) for key in keys),
            "" if trial.loss is None else f"{trial.loss:.4f}",
            duration(trial.seconds),
        ]
        for trial in ordered(sweep)
    ]
    return head, rows


def mark(sweep: Sweep, trial: SweepTrial) -> str:
    """What is special about a trial."""
    found = ["best"] if trial.number == sweep.best else []
    found += ["default"] if trial.default else []
    found += [trial.state] if trial.state != "finished" else []
    return ", ".join(found)


def short(key: str) -> str:
    """A key without its group."""
    return key.partition(".")[2]


def value_text(value: Any) -> str:
    """A value in a narrow column."""
    if isinstance(value, list):
        return "+".join(map(str, value))
    return "" if value is None else yaml_value(value)


def importance_text(sweep: Sweep) -> str:
    """Keys by their share in reaching a low loss, in one line."""
    return ", ".join(f"{short(key)} {share:.0%}" for key, share in sweep.importance.items())


def verdict_text(sweep: Sweep) -> str:
    """Whether the best trial is better than the recipe as it was given."""
    found = sweep.verdict
    if found is None:
        return f"No verdict: {sweep.no_verdict}."
    test = found.test
    word = {
        "better": f"Trial {found.trial} is better than the recipe as it was given",
        "no evidence": f"There is not enough evidence that trial {found.trial} is better than the "
        "recipe as it was given",
        "worse": f"Trial {found.trial} is worse than the recipe as it was given; its lower loss on the "
        "rows that chose it was luck",
    }[test.verdict]
    return (
        f"{word}: on {test.rows} rows that chose nothing its loss is {found.best.mean:.4f} against "
        f"{found.default.mean:.4f}, a change of {test.difference:+.4f} "
        f"[{test.low:+.4f}, {test.high:+.4f}] (p {'< 0.001' if test.p < 0.001 else f'{test.p:.3f}'}, {test.confidence:.4g} confidence, paired "
        "by row)."
    )


VERDICT_NOTE = (
    "The interval says how far the choice of rows moves the difference. Another seed of training "
    "moves it too, which one run of each cannot tell: luthier compare --seeds can."
)
