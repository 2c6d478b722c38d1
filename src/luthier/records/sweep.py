"""A sweep: what was varied, what each trial reached, and the verdict on the best: ``sweep.json``."""

from typing import Any, Literal

from luthier.records.evaluation import Interval, PairedTest
from luthier.records.record import Record

TrialState = Literal["running", "finished", "pruned", "failed"]


class Span(Record):
    """A key that is varied between two numbers, both included.

    Attributes:
        log: equal ratios are equally likely, instead of equal differences.
        whole: whole numbers alone.
    """

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False


class Choice(Record):
    """A key that is varied over a few values, each as a recipe takes it."""

    key: str
    choices: list[Any]


Dimension = Span | Choice


class SweepTrial(Record):
    """One run of a sweep.

    Attributes:
        default: the recipe as it was given, nothing varied.
        values: of the varied keys.
        loss: the lowest validation loss (nats per token); of a pruned trial, the last.
        curve: validation losses in the order of the evaluations.
        folder: the run folder, as seen from the folder of the sweep.
        place: the machine and folder that it ran in.
        why: why it was pruned, or failed.
    """

    number: int
    state: TrialState
    default: bool
    values: dict[str, Any]
    loss: float | None = None
    curve: list[float]
    seconds: float
    folder: str
    place: str
    why: str | None = None


class SweepForecast(Record):
    """What all trials take if none is pruned; least and most. None where it is unknown.

    Attributes:
        cost: US dollars.
        basis: what the times rest on.
    """

    trials: int
    seconds: tuple[float, float] | None = None
    cost: tuple[float, float] | None = None
    basis: str


class SweepVerdict(Record):
    """The best trial against the recipe as it was given, on rows that chose nothing.

    Attributes:
        trial: number of the best.
        default, best: mean loss in nats per token.
        test: of ``best`` less ``default``, row by row; ``better`` is a lower loss.
        ratio: of perplexities, best over default.
        looks: how many trials were compared with the default on these rows so far, this one included.
    """

    trial: int
    default: Interval
    best: Interval
    test: PairedTest
    ratio: float
    looks: int


class Sweep(Record):
    """A sweep as it stands.

    Attributes:
        storage: where the trials are kept, without a password.
        train_rows, choosing_rows, judging_rows: rows that trials learn from, rows that choose among
            them, and rows that judge the best.
        best: number of the finished trial with the lowest loss.
        recipe: file with its recipe.
        importance: share of each key in reaching a low loss (PED-ANOVA); empty below four finished
            trials.
        seconds: of all trials together, on all machines.
        cost: US dollars, where a price is known.
        ended: why no further trial is started; None while trials run.
        no_verdict: why there is none.
        when: ISO 8601, UTC.
    """

    name: str
    folder: str
    storage: str
    model: str
    method: str
    train_rows: int
    choosing_rows: int
    judging_rows: int
    space: list[Dimension]
    trials: list[SweepTrial]
    best: int | None = None
    recipe: str | None = None
    importance: dict[str, float]
    forecast: SweepForecast
    seconds: float
    cost: float | None = None
    ended: str | None = None
    verdict: SweepVerdict | None = None
    no_verdict: str | None = None
    when: str

    @property
    def best_trial(self) -> SweepTrial | None:
        return next((trial for trial in self.trials if trial.number == self.best), None)

    @property
    def default_trial(self) -> SweepTrial | None:
        return next((trial for trial in self.trials if trial.default), None)
